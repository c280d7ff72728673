"""Few-shot: a target's store and a few of its normal images → Scores."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.pipeline.checked import checked_detector
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset, find_direction, split_name
from spg_pipe.pipeline.features import extract
from spg_pipe.pipeline.own_images import note_own_images
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.target import note_known
from spg_pipe.recipe.machine import choose_device

if TYPE_CHECKING:
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
    from spg_pipe.bank.few_shot import banks_of, note_of_copies, seen_of
    from spg_pipe.bank.few_shot import score_few_shot as score_store
    from spg_pipe.bank.fusion import require_fusible
    from spg_pipe.detector.model import Detector

    params, device = run.params, choose_device(run.device)
    if alone and (detector or aux or seed is not None):
        raise SpgError("--bank alone uses no detector: leave out --detector, --aux and --seed.")
    dataset = find_dataset(params, target)
    features = checked_store(run, dataset, store)
    # A named detector keeps its own σ, as in `score`, unless told otherwise.
    options = params.score if detector is None or run.changes("score") else None
    chosen: list[Detector | None] = [None]
    if detector is not None:
        chosen = [Detector.load(detector)]
    elif not alone:
        source = find_direction(params, dataset.name, aux).aux
        seeds = [seed] if seed is not None else params.seeds
        chosen = [Detector.load(checked_detector(run, source, one)) for one in seeds]
    for one in chosen:
        if one is not None:
            require_fusible(one, options)
    normal = _store_of_normals(run, normals)
    banks = banks_of([normal], features, params.bank, device=device)
    run.console.say(f"{banks.supervision}, from {normal.path}")
    if copies := sum(own.copies for own in banks.rows.values()):
        run.console.say(note_of_copies(copies, copies + sum(seen_of(banks.rows))))
    written = []
    for one in chosen:
        if one is not None:
            note_own_images(run, one, dataset, features)
        trained_on = one.record.auxiliary.dataset if one else ""
        path = run.paths.few_shot(
            trained_on,
            dataset.name,
            one.record.seed if one else None,
            {
                "detector": one.fingerprint if one else None,
                "store": features.fingerprint,
                "normals": banks.fingerprint,
                "bank": params.bank.model_dump(mode="json"),
                "score": options and options.model_dump(mode="json"),
            },
        )
        with run.console.progress(f"score {dataset.name}") as update:
            scores = score_store(
                one, banks, features, path, score=options, device=device, progress=update
            )
        note_known(run, scores)
        run.console.say(
            f"Few-shot scores of {dataset.name} → {path}; judge them with `spg-pipe evaluate "
            f"--split {split_name(params, dataset)} --scores {shlex.quote(str(path))}"
            f"{f' --store {shlex.quote(str(store))}' if store else ''}`"
        )
        written.append(path)
    return written


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
