"""Few-shot: a few normal images of a target → memory banks → Scores."""

from collections.abc import Sequence
from pathlib import Path

from spg_pipe.bank.few_shot import (
    Banks,
    banks_of,
    note_of_copies,
    note_of_known,
    require_fusible,
    require_serving,
    says,
    score_few_shot,
    seen_of,
)
from spg_pipe.bank.normal_patches import KNOWN
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.checked_store import backbone_differences
from spg_pipe.pipeline.datasets import find_dataset, scan
from spg_pipe.pipeline.features import stored
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset, ScoreParams
from spg_pipe.recipe.places import place_of
from spg_pipe.store.files import is_there
from spg_pipe.store.reader import FeatureStore


def banks_for(
    run: RecipeRun,
    normals: str,
    target: FeatureStore,
    judges: Sequence[Detector | None],
    options: ScoreParams | None,
) -> Banks:
    """A memory bank for each category of a target; see `score` for `normals`.

    An `SpgError` if the images are no bank for this target, or one of the detectors cannot be added
    to it.
    """
    for judge in filter(None, judges):
        require_fusible(judge, options)
        judge.check_backbone(target.spec.backbone, f"The store {target.path}")
    store = _store_of_normals(run, normals, target)
    banks = banks_of([store], target, run.params.bank, device=choose_device(run.device))
    run.console.say(f"{says(seen_of(banks.rows))}, from {store.path}")
    if copies := sum(images.copies for images in banks.rows.values()):
        run.console.say(note_of_copies(copies, copies + sum(seen_of(banks.rows))))
    return banks


def score_with_banks(
    run: RecipeRun,
    dataset: Dataset,
    store: FeatureStore,
    banks: Banks,
    judge: Detector | None,
    options: ScoreParams | None,
) -> Path:
    """Scores of the banks, alone or added to a detector."""
    content = {
        "detector": judge.fingerprint if judge else None,
        "store": store.fingerprint,
        "normals": banks.origin.normals,
        "bank": run.params.bank.model_dump(mode="json"),
        "score": options and options.model_dump(mode="json"),
    }
    aux, seed = (judge.record.auxiliary.dataset, judge.record.seed) if judge else ("", None)
    path, device = run.paths.few_shot(aux, dataset.name, seed, content), choose_device(run.device)
    with run.console.progress(f"score {dataset.name}") as update:
        scores = score_few_shot(
            judge, banks, store, path, score=options, device=device, progress=update
        )
    note_known(run, scores)
    return path


def note_known(run: RecipeRun, scores: Scores) -> None:
    """Say which scored images are normal images of the bank themselves."""
    say_known(run, scores.table["path"][scores.table[KNOWN]].tolist(), len(scores.table))


def say_known(run: RecipeRun, paths: Sequence[str], images: int, where: str = "") -> None:
    """Say which images of a target are normal images themselves, if there are such."""
    if paths:
        so = f"and metrics{where} are too good. Use normal images of another split."
        run.console.say(note_of_known(paths, images, so))


def _store_of_normals(run: RecipeRun, normals: str, target: FeatureStore) -> FeatureStore:
    """The store that is named, or that of a dataset's split or a folder; made if it is missing."""
    place = place_of(normals)
    if isinstance(place, str) or (place / "zarr.json").is_file():
        return FeatureStore(place)
    dataset = find_dataset(run.params, normals, option="--normals")
    if not is_there(run.paths.store(dataset)):
        manifest = scan(run, dataset, skip_bad=run.params.extract.skip_bad)
        require_serving(manifest, target)
        if faults := backbone_differences(target.spec.backbone, run.params):
            raise SpgError(
                f"{target.path} is of another backbone than the recipe: {'; '.join(faults)}. Name "
                "the recipe that it was made with (--params, --set), or a store with --normals."
            )
    return stored(run, dataset)
