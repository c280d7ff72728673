"""Few-shot: a target's store and a few of its normal images → Scores."""

from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.features import extract
from spg_pipe.pipeline.own_images import note_own_images
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.target import detectors_for, evaluate_command, note_known
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset, ScoreParams

if TYPE_CHECKING:
    from spg_pipe.bank.few_shot import Banks
    from spg_pipe.detector.model import Detector
    from spg_pipe.store.reader import FeatureStore


def score_few_shot(
    run: RecipeRun,
    target: str,
    normals: str,
    *,
    alone: bool = False,
    aux: str | None = None,
    seed: int | None = None,
    detector: Path | None = None,
    store: Path | None = None,
) -> list[Path]:
    """FeatureStores of the target and of normal images, and a Detector → Scores.

    They lie in few-shot/, never in the place of zero-shot scores.

    Parameters
    ----------
    normals : str
        A store, or as `--split`: a dataset's split or a folder of images, whose tokens are
        computed if they are not there.
    alone : bool
        The bank judges without a detector: once, not for each seed.

    Raises
    ------
    SpgError
        If the normal images are no bank for this target, or the detector cannot be added to one.
    """
    from spg_pipe.bank.few_shot import banks_of, note_of_copies, require_fusible, says, seen_of

    if alone and (detector or aux or seed is not None):
        raise SpgError("--bank alone uses no detector: leave out --detector, --aux and --seed.")
    dataset = find_dataset(run.params, target)
    features = checked_store(run, dataset, store)
    judges: list[Detector | None] = [None]
    options: ScoreParams | None = run.params.score
    if not alone:
        detectors, options = detectors_for(run, dataset, aux, seed, detector)
        judges = [*detectors.values()]
        for each in detectors.values():
            require_fusible(each, options)
    normal = _store_of_normals(run, normals)
    banks = banks_of([normal], features, run.params.bank, device=choose_device(run.device))
    run.console.say(f"{says(seen_of(banks.rows))}, from {normal.path}")
    if copies := sum(images.copies for images in banks.rows.values()):
        run.console.say(note_of_copies(copies, copies + sum(seen_of(banks.rows))))
    written = []
    for judge in judges:
        path = _score_one(run, dataset, features, banks, judge, options)
        command = evaluate_command(run, dataset, path, store)
        run.console.say(f"Few-shot scores of {dataset.name} → {path}; judge them with {command}")
        written.append(path)
    return written


def _score_one(
    run: RecipeRun,
    dataset: Dataset,
    features: "FeatureStore",
    banks: "Banks",
    judge: "Detector | None",
    options: ScoreParams | None,
) -> Path:
    """Scores of the banks, alone or added to a detector."""
    from spg_pipe.bank.few_shot import score_few_shot as score_store

    if judge is not None:
        note_own_images(run, judge, dataset, features)
    content = {
        "detector": judge.fingerprint if judge else None,
        "store": features.fingerprint,
        "normals": banks.origin.normals,
        "bank": run.params.bank.model_dump(mode="json"),
        "score": options and options.model_dump(mode="json"),
    }
    trained_on, seed = (judge.record.auxiliary.dataset, judge.record.seed) if judge else ("", None)
    path = run.paths.few_shot(trained_on, dataset.name, seed, content)
    with run.console.progress(f"score {dataset.name}") as update:
        scores = score_store(
            judge,
            banks,
            features,
            path,
            score=options,
            device=choose_device(run.device),
            progress=update,
        )
    note_known(run, scores)
    return path


def _store_of_normals(run: RecipeRun, normals: str) -> "FeatureStore":
    """The store that is named, or that of a dataset's split or a folder; made if it is missing."""
    from spg_pipe.store.reader import FeatureStore

    if (Path(normals) / "zarr.json").is_file():
        return FeatureStore(Path(normals))
    dataset = find_dataset(run.params, normals, option="--normals")
    try:
        return checked_store(run, dataset)
    except NotThereError:
        # A folder that the recipe does not list may have got or lost images since.
        return FeatureStore(extract(run, dataset, replace=dataset not in run.params.datasets))
