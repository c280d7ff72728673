"""Detectors on targets: scores → metrics → report."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.checked import checked_detector, checked_metrics, checked_scores
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset, find_direction, scan, split_name
from spg_pipe.pipeline.own_images import note_own_images
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Dataset, Params, ScoreParams

if TYPE_CHECKING:
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.detector.model import Detector
    from spg_pipe.detector.scores import Scores
    from spg_pipe.metrics import MetricsTable
    from spg_pipe.store.reader import FeatureStore


def score(
    run: RecipeRun,
    target: str,
    *,
    aux: str | None = None,
    seed: int | None = None,
    detector: Path | None = None,
    store: Path | None = None,
) -> list[Path]:
    """Detector + FeatureStore of the target → Scores, for one seed or for all of the recipe."""
    from spg_pipe.detector.scores import score_store

    dataset = find_dataset(run.params, target)
    features = checked_store(run, dataset, store)
    written = []
    detectors, options = detectors_for(run, dataset, aux, seed, detector)
    for folder, loaded in detectors.items():
        trained_on = loaded.record.auxiliary.dataset
        if trained_on == dataset.name:
            run.console.say(
                f"Note: {folder} was trained on {trained_on} itself; this is not zero-shot."
            )
        note_own_images(run, loaded, dataset, features)
        given = {"store": features.fingerprint} if store else {}
        if detector is not None:
            given["detector"] = loaded.fingerprint
        path = run.paths.scores(trained_on, dataset, loaded.record.seed, given)
        device = choose_device(run.device)
        with run.console.progress(f"score {dataset.name}") as update:
            score_store(loaded, features, path, score=options, device=device, progress=update)
        run.console.say(f"Scores of {dataset.name} → {path}")
        if store is not None:  # `evaluate` alone would take the scores of the dataset's own store
            run.console.say(f"Judge them with {evaluate_command(run, dataset, path, store)}")
        written.append(path)
    return written


def detectors_for(
    run: RecipeRun, dataset: Dataset, aux: str | None, seed: int | None, named: Path | None
) -> "tuple[dict[Path, Detector], ScoreParams | None]":
    """The detectors that judge a target, by their folders, and how they score.

    None: a named detector keeps its own rule, as in `predict`, unless an option changes it.
    """
    from spg_pipe.detector.model import Detector

    if named is not None:
        options = run.params.score if run.changes("score") else None
        return {named: Detector.load(named)}, options
    source = find_direction(run.params, dataset.name, aux).aux
    seeds = [seed] if seed is not None else run.params.seeds
    for each in seeds:
        checked_detector(run, source, each)
    folders = [run.paths.detector(source, each) for each in seeds]
    return {folder: Detector.load(folder) for folder in folders}, run.params.score


def evaluate_command(run: RecipeRun, dataset: Dataset, scores: Path, store: Path | None) -> str:
    """The command that judges scores which are not at the recipe's place."""
    inputs = {"scores": scores} | ({"store": store} if store else {})
    options = "".join(f" --{name} {shlex.quote(str(path))}" for name, path in inputs.items())
    return f"`spg-pipe evaluate --split {split_name(run.params, dataset)}{options}`"


def evaluate(
    run: RecipeRun,
    target: str,
    *,
    aux: str | None = None,
    seed: int | None = None,
    scores: Path | None = None,
    store: Path | None = None,
) -> list[Path]:
    """Scores → Metrics, for one seed or for all of the recipe, or of one named folder."""
    dataset = find_dataset(run.params, target)
    features = checked_store(run, dataset, store)
    if scores is not None:
        chosen = [scores]
    else:
        source = find_direction(run.params, dataset.name, aux).aux
        seeds = [seed] if seed is not None else run.params.seeds
        for each in seeds:
            checked_scores(run, dataset, source, each)
        chosen = [run.paths.scores(source, dataset, each) for each in seeds]
    given = scores is not None or store is not None
    return [_evaluate_one(run, dataset, folder, features, given=given) for folder in chosen]


def _evaluate_one(
    run: RecipeRun, dataset: Dataset, folder: Path, store: "FeatureStore", *, given: bool
) -> Path:
    from spg_pipe.bank.few_shot import KNOWN
    from spg_pipe.detector.evaluate import evaluate_scores
    from spg_pipe.detector.scores import Scores

    params = run.params.metrics
    loaded = Scores.load(folder)
    held = f"{loaded.record.dataset}/{loaded.record.split}"
    if held != f"{dataset.name}/{dataset.split}":
        raise SpgError(
            f"{folder} holds scores of {held}, not of {dataset.name}/{dataset.split}. "
            "Name their dataset with --split."
        )
    if loaded.record.store != store.fingerprint:
        raise SpgError(
            f"{folder} holds scores of another store than {store.path}. Name the one that was "
            "scored with --store, or run `spg-pipe score` again."
        )
    manifest = None
    if params.resolution == "original":
        manifest = _manifest_of_store(run, dataset, store)
    with run.console.progress(f"evaluate {dataset.name}") as update:
        result = evaluate_scores(loaded, store, params, manifest=manifest, progress=update)
    aux, trained = loaded.record.auxiliary, loaded.record.seed
    inputs = {"scores": loaded.record.fingerprint} if given else {}
    if KNOWN in loaded.table or trained is None:
        content = inputs | params.model_dump(mode="json")
        few_shot = run.paths.few_shot(aux, dataset.name, trained, content)
        place = few_shot.with_name(f"{few_shot.name}.json")
        if KNOWN in loaded.table:
            note_known(run, loaded)
    else:
        place = run.paths.metrics(aux, dataset, trained, inputs)
    result.save(place)
    run.console.say(f"Metrics of {dataset.name} → {place}")
    return place


def note_known(run: RecipeRun, scores: "Scores") -> None:
    """Say which scored images are normal images of the bank themselves."""
    from spg_pipe.bank.few_shot import KNOWN

    say_known(run, scores.table["path"][scores.table[KNOWN]].tolist(), len(scores.table))


def say_known(run: RecipeRun, paths: Sequence[str], images: int, where: str = "") -> None:
    """Say which images of a target are normal images themselves, if there are such."""
    from spg_pipe.bank.few_shot import note_of_known

    if paths:
        so = f"and metrics{where} are too good. Use normal images of another split."
        run.console.say(note_of_known(paths, images, so))


def _manifest_of_store(run: RecipeRun, dataset: Dataset, store: "FeatureStore") -> "Manifest":
    """The manifest that a store was made from: as prepared, or by looking at the folder again."""
    from spg_pipe.datasets.manifest import Manifest

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
            f"The images or masks in {dataset.root} are not those of {store.path}. "
            "Run `spg-pipe extract --replace` and `spg-pipe score` again."
        )
    return manifest


def read_metrics(path: Path) -> "MetricsTable":
    """The table of a metrics file."""
    from spg_pipe.detector import metrics_file

    return metrics_file.read_metrics(path).table


def tables_of(params: Params, runs: "list[MetricsTable]") -> list[str]:
    """Tables for the terminal of one direction: each seed's, and their mean ± deviation."""
    from spg_pipe.bank.few_shot import FEW_SHOT
    from spg_pipe.metrics import seeds_mean
    from spg_pipe.report.tables import text_table

    context, figures = runs[0].context, {(p.aux, p.target): p for p in params.published}
    published = figures.get((context.auxiliary or "", context.dataset))
    if FEW_SHOT in context.supervision:  # published figures are zero-shot
        published = None
    tables = [text_table(table, published) for table in runs]
    if len(runs) > 1:
        tables.append(text_table(seeds_mean(runs), published))
    return tables


def report(run: RecipeRun) -> Path:
    """Metrics and Scores of every direction → report/index.html.

    A seed or direction without them is named on the page.

    Raises
    ------
    SpgError
        If there is nothing to report: no metrics that the active recipe makes.
    """
    from spg_pipe.report.build import build_report

    params, paths = run.params, run.paths
    if not params.directions:
        raise SpgError("The recipe has no directions, so there is nothing to report.")
    runs, missing = {}, []
    for direction in params.directions:
        for seed in params.seeds:
            try:
                found = checked_metrics(run, direction, seed)
            except SpgError as error:
                missing.append(str(error))
            else:
                runs[direction.aux, direction.target, seed] = found
    if not runs:
        raise SpgError(missing[0])
    for message in missing:
        run.console.say(f"Left out of the report: {message}")
    with run.console.progress("report", "categories") as update:
        path = build_report(params, paths, paths.report, runs, progress=update)
    run.console.say(f"Report → {path}")
    return path
