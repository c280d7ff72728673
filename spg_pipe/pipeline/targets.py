"""Detectors on targets: scores → metrics → report."""

import shlex
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spg_pipe.artefacts.files import require_writable
from spg_pipe.bank.few_shot import FEW_SHOT
from spg_pipe.bank.normal_patches import KNOWN
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.calibration import Calibration, Judging
from spg_pipe.detector import metrics_file
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import ScoresRecord
from spg_pipe.detector.scores import Ignored, Scores, score_store
from spg_pipe.errors import SpgError
from spg_pipe.metrics import MetricsTable, seeds_mean
from spg_pipe.pipeline.checked import checked_detector, checked_scores, finished_metrics
from spg_pipe.pipeline.checked_store import checked_store, named_input
from spg_pipe.pipeline.datasets import find_dataset, find_direction, scan, split_name
from spg_pipe.pipeline.jobs import EvaluateJob, ScoreJob, evaluated, scored
from spg_pipe.pipeline.normals import banks_for, note_known, score_with_banks
from spg_pipe.pipeline.own_images import note_own_images
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.predict.view import Viewing
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset, Params, ScoreParams
from spg_pipe.recipe.places import Place, from_root
from spg_pipe.report.tables import text_table
from spg_pipe.store.reader import FeatureStore

if TYPE_CHECKING:
    from spg_pipe.pipeline.cluster import Workers


def score(
    run: RecipeRun,
    target: str,
    *,
    detector: Path | None = None,
    store: Place | None = None,
    normals: str | None = None,
    alone: bool = False,
    ignore: Path | None = None,
) -> list[Path]:
    """Detector + FeatureStore of the target → Scores, for all seeds of the recipe.

    Parameters
    ----------
    normals : str, optional
        Few-shot: a store of normal images, or as `--split` a dataset's split or a folder, whose
        tokens are computed if they are not there. The scores lie in few-shot/, never in the place
        of zero-shot ones.
    alone : bool
        The normal images judge without a detector: once, not for each seed.
    ignore : Path, optional
        A mask of what is ignored in all images, or a folder of masks (`Viewing`).

    An `SpgError` if the normal images are no bank for this target, or the detector cannot be added
    to one.
    """
    dataset = find_dataset(run.params, target)
    features = checked_store(run, dataset, store)
    judges: list[Detector | None] = [None]
    given: dict[str, str] = {}
    options: ScoreParams | None = run.params.score
    if not alone:
        detectors, options = detectors_for(run, dataset, detector)
        judges = [*detectors]
    ignored = ignored_in(features, Viewing(ignore=ignore)) if ignore else None
    banks = banks_for(run, normals, features, judges, options) if normals else None
    written = []
    with run.workers_of_cluster() as workers:
        for judge in judges:
            if judge is not None:
                note_own_images(run, judge, dataset, features)
            if banks is not None:
                path = score_with_banks(run, dataset, features, banks, judge, options)
            elif judge is not None:
                own = run.paths.store(dataset)
                given = named_input("store", store, own, features.fingerprint)
                given |= _given_detector(run, judge, detector)
                given |= {"ignored": ignored.digest} if ignored else {}
                path = run.paths.scores(
                    judge.record.auxiliary.dataset, dataset, judge.record.seed, given
                )
                seen = from_root(features.path), features.fingerprint
                job = ScoreJob(judge, *seen, options, ignored, run.device)
                _score_one(run, features, job, path, workers)
            run.console.say(f"Scores of {dataset.name} → {path}")
            if banks or given:  # `evaluate` alone would take the recipe's own scores
                run.console.say(f"Judge them with {_evaluate_command(run, dataset, path, store)}")
            written.append(path)
    return written


def _score_one(
    run: RecipeRun, store: FeatureStore, job: ScoreJob, path: Path, workers: "Workers | None"
) -> None:
    """Zero-shot scores of one detector, by the workers where there are some."""
    aux, device = job.detector.record.auxiliary.dataset, choose_device(run.device)
    name = store.spec.dataset
    if aux == name:
        run.console.say(f"Note: the detector was trained on {aux} itself; this is not zero-shot.")
    with ExitStack() as stack:
        update = stack.enter_context(run.console.progress(f"score {name}"))
        parts = None
        if workers is not None:
            parts = stack.enter_context(scored(workers, job, store, update))
        score_store(
            job.detector,
            store,
            path,
            score=job.score,
            ignored=job.ignored,
            device=device,
            progress=update,
            parts=parts,
        )


def ignored_in(store: FeatureStore, viewing: Viewing) -> Ignored:
    """What of a store's images does not count; an `SpgError` names an image whose mask is wrong."""
    size, shares, of = store.image_size, dict[bytes, int](), []
    columns = [store.table[name].tolist() for name in ("path", "category", "height", "width")]
    for path, category, *shape in zip(*columns, strict=True):
        kept = viewing.of(path, category, (shape[0], shape[1]), exif=store.spec.exif).kept(size)
        levels = np.full((size, size), 255, np.uint8) if kept is None else np.rint(kept * 255)
        of.append(shares.setdefault(levels.astype(np.uint8).tobytes(), len(shares)))
    held = np.frombuffer(b"".join(shares), np.uint8).reshape(-1, size, size)
    return Ignored(viewing.digest or "", held, np.array(of, np.int32))


def detectors_for(
    run: RecipeRun, dataset: Dataset, named: Path | None
) -> tuple[list[Detector], ScoreParams | None]:
    """The detectors that judge a target, and how they score.

    None: a named detector that is not the recipe's keeps its own rule, as in `predict`, unless an
    option changes it.
    """
    if named is not None:
        judge = Detector.load(named)
        keeps_its_rule = _given_detector(run, judge, named) and not run.changes("score")
        return [judge], None if keeps_its_rule else run.params.score
    aux = find_direction(run.params, dataset.name).aux
    for seed in run.params.seeds:
        checked_detector(run, aux, seed)
    folders = [run.paths.detector(aux, seed) for seed in run.params.seeds]
    return [Detector.load(folder) for folder in folders], run.params.score


def _given_detector(run: RecipeRun, judge: Detector, named: Path | None) -> dict[str, str]:
    own = run.paths.detector(judge.record.auxiliary.dataset, judge.record.seed)
    return named_input("detector", named, own, judge.fingerprint)


def _evaluate_command(run: RecipeRun, dataset: Dataset, scores: Path, store: Place | None) -> str:
    """The command that judges scores which are not at the recipe's place."""
    inputs = {"scores": scores} | ({"store": store} if store else {})
    options = "".join(f" --{name} {shlex.quote(str(path))}" for name, path in inputs.items())
    split = split_name(run.params, dataset)
    return f"`spg-pipe evaluate --split {split}{options}{run.options}`"


def evaluate(
    run: RecipeRun,
    target: str,
    *,
    scores: Path | None = None,
    store: Place | None = None,
    calibration: Path | None = None,
) -> list[Path]:
    """Scores → Metrics, for all seeds of the recipe, or of one named folder.

    `calibration` is a file with thresholds: what they give is added to each row.
    """
    limits = Calibration.load(calibration) if calibration else None
    dataset = find_dataset(run.params, target)
    features = checked_store(run, dataset, store)
    folders = [scores] if scores else []
    if scores is None:
        aux = find_direction(run.params, dataset.name).aux
        for seed in run.params.seeds:
            checked_scores(run, dataset, aux, seed)
            folders.append(run.paths.scores(aux, dataset, seed))
    with run.workers_of_cluster() as workers:
        return [
            _evaluate_one(run, dataset, folder, features, limits, workers) for folder in folders
        ]


def _evaluate_one(
    run: RecipeRun,
    dataset: Dataset,
    folder: Path,
    store: FeatureStore,
    calibration: Calibration | None,
    workers: "Workers | None",
) -> Path:
    params = run.params.metrics
    loaded = Scores.load(folder)
    if calibration is not None and loaded.record.bank is not None:
        raise SpgError(
            f"The scores in {folder} are few-shot, of banks made from a feature store, and a "
            "calibration is of zero-shot scores or of a bank made from images, so none holds for "
            "them. Leave out --calibration, or judge the images with `spg-pipe predict --normals`."
        )
    if calibration is not None:
        calibration.require(_judging(loaded.record, store), date.today(), "of --calibration")
    if loaded.record.store != store.fingerprint:
        held = f"{loaded.record.dataset}/{loaded.record.split}"
        raise SpgError(
            f"{folder} holds scores of {held} from another store than {store.path}. Name their "
            "dataset with --split and the store that was scored with --store, or run `spg-pipe "
            "score` again."
        )
    aux, trained = loaded.record.auxiliary, loaded.record.seed
    if KNOWN in loaded.table or trained is None:
        content = {"scores": loaded.record.fingerprint} | params.model_dump(mode="json")
        few_shot = run.paths.few_shot(aux, dataset.name, trained, content)
        place = few_shot.with_name(f"{few_shot.name}.json")
    else:
        own = run.paths.scores(aux, dataset, trained)
        given = named_input("scores", folder, own, loaded.record.fingerprint)
        place = run.paths.metrics(aux, dataset, trained, given)
    require_writable(place)
    original = params.resolution == "original"
    manifest = _manifest_of_store(run, dataset, store) if original else None
    with ExitStack() as stack:
        update = stack.enter_context(run.console.progress(f"evaluate {dataset.name}"))
        judged = None
        if workers is not None:
            job = EvaluateJob(loaded, from_root(store.path), params, manifest, calibration)
            judged = stack.enter_context(evaluated(workers, job))
        result = evaluate_scores(
            loaded,
            store,
            params,
            manifest=manifest,
            calibration=calibration,
            progress=update,
            judged=judged,
        )
    if KNOWN in loaded.table:
        note_known(run, loaded)
    result.save(place)
    run.console.say(f"Metrics of {dataset.name} → {place}")
    return place


def _judging(record: ScoresRecord, store: FeatureStore) -> Judging:
    """By what a store's images were judged without a bank."""
    tiles, judge = record.backbone.tiles, record.detector
    return Judging(
        detector=judge.fingerprint if judge else "none",
        tiles=tuple(tiles.sides) if tiles else (),
        ignored=record.ignored,
        white=store.spec.white,
    )


def _manifest_of_store(run: RecipeRun, dataset: Dataset, store: FeatureStore) -> Manifest:
    """The manifest that a store was made from: as prepared, or by looking at the folder again."""
    prepared, spec = run.paths.manifest(dataset), store.spec
    if prepared.exists():
        manifest = Manifest.load(prepared, root=dataset.root)
        manifest = manifest.without([bad.path for bad in spec.skipped])
        if manifest.fingerprint() == spec.manifest:
            return manifest
    limit, categories = store.selection.get("limit"), store.selection.get("categories")
    manifest = scan(run, dataset, limit=limit, categories=categories, leave_out=spec.skipped)
    if manifest.fingerprint() != spec.manifest:
        raise SpgError(
            f"The images or masks in {dataset.root} are not those of {store.path}. Run `spg-pipe "
            f"extract --replace{run.options}` and `spg-pipe score{run.options}` again."
        )
    return manifest


def read_metrics(path: Path) -> MetricsTable:
    """The table of a metrics file."""
    return metrics_file.read_metrics(path).table


def tables_of(params: Params, runs: list[MetricsTable]) -> list[str]:
    """Tables for the terminal of one direction: each seed's, and their mean ± deviation."""
    context, figures = runs[0].context, {(p.aux, p.target): p for p in params.published}
    published = figures.get((context.auxiliary or "", context.dataset))
    if FEW_SHOT in context.supervision:  # published figures are zero-shot
        published = None
    tables = [text_table(table, published) for table in runs]
    if len(runs) > 1:
        tables.append(text_table(seeds_mean(runs), published))
    return tables


def report(run: RecipeRun, *, tracked: bool = False) -> Path:
    """Metrics and Scores of every direction → report/index.html.

    A seed or direction without them is named on the page. `tracked` by DVC, which insists on a
    folder: that of a recipe without directions is empty.

    An `SpgError` if there is nothing to report: no metrics that the active recipe makes.
    """
    # Here, because `score` and `evaluate` draw nothing: they start without matplotlib.
    from spg_pipe.report.build import build_report

    params, paths = run.params, run.paths
    if tracked and not params.directions:
        run.console.say("No report: the recipe has no directions.")
        paths.report.mkdir(parents=True, exist_ok=True)
        return paths.report
    runs = finished_metrics(run)
    with run.console.progress("report") as update:
        path = build_report(params, paths, paths.report, runs, progress=update)
    run.console.say(f"Report → {path}")
    return path
