"""One function a stage: the commands and the scripts in stages/ only parse and call these.

Every function takes a session, works in the recipe's paths (`paths.py`) and returns the path of
the artefact that it wrote.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.console import choose_device, cpu_workers
from spg_pipe.errors import SpgError
from spg_pipe.find import find_dataset, find_store_of, scan, store_of_dataset
from spg_pipe.find_runs import find_detector, find_direction, find_run, find_sae, find_scores
from spg_pipe.params import Dataset, Params, ScoreParams
from spg_pipe.session import Session, image_size

if TYPE_CHECKING:
    from spg_pipe.backbones.base import Backbone
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.detector import Detector
    from spg_pipe.store.reader import FeatureStore


def write_demo_sets(session: Session) -> None:
    """Generate the recipe's built-in demo sets where they are not there yet."""
    for demo in session.params.demo_sets:
        write_demo_set(session.params, demo.name)


def write_demo_set(params: Params, name: str) -> Path:
    """Generate a built-in demo set of the recipe."""
    from spg_pipe.datasets.demo import write_demo

    for demo in params.demo_sets:
        if demo.name == name:
            write_demo(name, demo.root, seed=demo.seed)
            return demo.root
    known = ", ".join(demo.name for demo in params.demo_sets) or "none"
    raise SpgError(f"Demo set {name!r} is not among the recipe's demo_sets: {known}.")


def prepare(session: Session, dataset: Dataset) -> Path:
    """Raw folder → Manifest."""
    manifest = scan(session, dataset)
    path = session.place(
        session.paths.manifest(dataset.name, dataset.split),
        manifest.fingerprint(),
        own=dataset in session.params.datasets,
    )
    manifest.save(path)
    session.console.say(f"{dataset.name}/{dataset.split}: {len(manifest)} images → {path}")
    for note in manifest.notes:
        session.console.say(f"  note: {note}")
    return path


def load_backbone(session: Session) -> "Backbone":
    """The recipe's backbone on the session's device."""
    from spg_pipe.backbones import load_backbone as load

    params = session.params
    return load(
        params.backbone.alias,
        image_size=image_size(params),
        layers=params.backbone.layers,
        norm=params.backbone.norm,
        protocol=params.method.protocol,
        weights=params.backbone.weights,
        device=choose_device(session.device),
    )


def extract(
    session: Session,
    dataset: Dataset,
    *,
    replace: bool = False,
    from_manifest: bool = False,
    out: Path | None = None,
    backbone: "Backbone | None" = None,
) -> Path:
    """Manifest → FeatureStore.

    Parameters
    ----------
    replace : bool
        Replace a store of other content in the same place.
    from_manifest : bool
        Use the prepared manifest (the DVC stage, whose dependency it is) instead of looking at
        the folder again.
    out : Path, optional
        Another place.
    backbone : Backbone, optional
        Already loaded, for several datasets.
    """
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.store.extract import extract as run
    from spg_pipe.store.masks import mask_notes

    # First of all, because missing weights are the likeliest reason to stop.
    backbone = backbone or load_backbone(session)
    if from_manifest:
        path = session.paths.manifest(dataset.name, dataset.split)
        manifest = Manifest.load(path, root=dataset.root)
    else:
        manifest = scan(session, dataset)
    params = session.params
    own = dataset in params.datasets
    place = session.paths.store(dataset.name if own else f"{dataset.name}-{dataset.split}")
    place = out or session.place(
        place, backbone.spec.to_dict(), params.extract, manifest.fingerprint(), own=own
    )
    with session.console.progress(f"extract {dataset.name}") as update:
        store = run(
            manifest,
            backbone,
            place,
            batch_images=params.extract.batch_images,
            shard_images=params.extract.shard_images,
            dtype=params.extract.dtype,
            compressor=params.extract.compressor,
            replace=replace,
            workers=cpu_workers(session.workers),
            device=choose_device(session.device),
            progress=update,
        )
    session.console.say(f"{dataset.name}: {len(store)} images → {place}")
    for note in mask_notes(store):
        session.console.say(f"  note: {note}")
    return place


def train_sae(session: Session, aux: str, seed: int, *, store: Path | None = None) -> Path:
    """FeatureStore of the auxiliary set → SparseAutoencoder."""
    from spg_pipe.sae.train import train_sae as run

    features = store_of_dataset(session, find_dataset(session.params, aux), store)
    params = session.params
    with session.console.progress(f"train-sae {aux} seed {seed}", "tokens") as update:
        result, quality, curve = run(
            features,
            params.sae,
            params.method,
            seed=seed,
            device=choose_device(session.device),
            cache=session.cache,
            progress=lambda layer, done, total, loss: update(done, total, loss, layer),
        )
    path = session.place(
        session.paths.sae(aux, seed), result.config["fingerprint"], own=store is None
    )
    result.save(path, quality, curve)
    for layer, values in quality.items():
        session.console.say(
            f"  {layer}: R² {values['r2']:.3f}, L0 {values['l0']:.1f}, "
            f"dead {values['dead_share']:.1%}, {values['tokens_seen']:,} tokens"
        )
    session.console.say(f"SAE of {aux}, seed {seed} → {path}")
    return path


def train_guides(
    session: Session, aux: str, seed: int, *, store: Path | None = None, sae: Path | None = None
) -> Path:
    """FeatureStore + SparseAutoencoder → Detector."""
    from spg_pipe.detector import train_guides as run
    from spg_pipe.guides.train import training_notes
    from spg_pipe.sae.model import SaeRun

    features = store_of_dataset(session, find_dataset(session.params, aux), store)
    params = session.params
    source = sae or find_sae(session, features, aux, seed)
    with session.console.progress(f"train-guides {aux} seed {seed}") as update:
        detector, curve = run(
            features,
            SaeRun.load(source),
            params.guides,
            params.method,
            params.score,
            seed=seed,
            device=choose_device(session.device),
            cache=session.cache,
            progress=update,
        )
    path = session.place(
        session.paths.detector(aux, seed),
        detector.fingerprint,
        own=store is None and sae is None,
    )
    header = ",".join(curve[0])
    lines = [",".join(f"{value:.8g}" for value in row.values()) for row in curve]
    detector.save(path, "\n".join([header, *lines]) + "\n")
    session.console.say(f"Detector of {aux}, seed {seed} → {path}")
    for note in training_notes(features):
        session.console.say(f"  note: {note}")
    return path


def score(
    session: Session,
    target: str,
    *,
    aux: str | None = None,
    seed: int | None = None,
    detector: Path | None = None,
    store: Path | None = None,
) -> list[Path]:
    """Detector + FeatureStore of the target → Scores, for one seed or for all of the recipe."""
    from spg_pipe.detector import Detector

    dataset = find_dataset(session.params, target)
    features = store_of_dataset(session, dataset, store)
    params = session.params
    own = store is None and detector is None and dataset in params.datasets
    # A named detector keeps its own σ and image score, as `predict` does, unless told otherwise.
    options = params.score if detector is None or "score" in session.changed else None
    if detector is not None:
        chosen = [detector]
    else:
        source = find_direction(params, dataset.name, aux).aux
        seeds = [seed] if seed is not None else params.seeds
        chosen = [find_detector(session, source, one) for one in seeds]
    written = []
    for folder in chosen:
        loaded = Detector.load(folder)
        trained_on = str(loaded.config["auxiliary"]["dataset"])
        if trained_on == dataset.name:
            session.console.say(
                f"Note: {folder} was trained on {trained_on} itself; this is not zero-shot."
            )
        path = session.place(
            session.paths.scores(trained_on, dataset.name, int(loaded.config["seed"])),
            loaded.fingerprint,
            features.fingerprint,
            options,
            own=own,
        )
        written.append(_score_one(session, loaded, features, path, options))
    return written


def _score_one(
    session: Session,
    detector: "Detector",
    features: "FeatureStore",
    path: Path,
    options: ScoreParams | None,
) -> Path:
    from spg_pipe.scoring import score_store

    with session.console.progress(f"score {features.spec.dataset}") as update:
        score_store(
            detector,
            features,
            path,
            score=options,
            device=choose_device(session.device),
            progress=update,
        )
    session.console.say(f"Scores of {features.spec.dataset} → {path}")
    return path


def evaluate(
    session: Session,
    target: str,
    *,
    aux: str | None = None,
    seed: int | None = None,
    scores: Path | None = None,
) -> list[Path]:
    """Scores → Metrics, for one seed or for all of the recipe, or of one named folder."""
    dataset = find_dataset(session.params, target)
    own = scores is None and dataset in session.params.datasets
    if scores is not None:
        chosen = [scores]
    else:
        source = find_direction(session.params, dataset.name, aux).aux
        seeds = [seed] if seed is not None else session.params.seeds
        chosen = [find_scores(session, dataset, source, one) for one in seeds]
    return [_evaluate_one(session, dataset, folder, own=own) for folder in chosen]


def _evaluate_one(session: Session, dataset: Dataset, folder: Path, *, own: bool) -> Path:
    from spg_pipe.evaluation import evaluate_scores
    from spg_pipe.scoring import Scores

    params = session.params.metrics
    loaded = Scores.load(folder)
    held = f"{loaded.config['dataset']}/{loaded.config['split']}"
    if held != f"{dataset.name}/{dataset.split}":
        raise SpgError(
            f"{folder} holds scores of {held}, not of {dataset.name}/{dataset.split}. "
            "Name their dataset with --split."
        )
    store = find_store_of(session, loaded.config["inputs"]["store"])
    manifest = None
    if params.resolution == "original":
        manifest = _manifest_of_store(session, dataset, store)
    with session.console.progress(f"evaluate {dataset.name}") as update:
        result = evaluate_scores(loaded, store, params, manifest=manifest, progress=update)
    detector = loaded.config["detector"]
    place = session.place(
        session.paths.metrics(detector["auxiliary"]["dataset"], dataset.name, detector["seed"]),
        params,
        loaded.config["fingerprint"],
        own=own,
    )
    result.save(place)
    session.console.say(f"Metrics of {dataset.name} → {place}")
    return place


def _manifest_of_store(session: Session, dataset: Dataset, store: "FeatureStore") -> "Manifest":
    """The manifest that a store was made from: as prepared, or by looking at the folder again."""
    from spg_pipe.datasets.manifest import Manifest

    prepared = session.paths.manifest(dataset.name, dataset.split)
    if prepared.exists():
        manifest = Manifest.load(prepared, root=dataset.root)
        if manifest.fingerprint() == store.spec.manifest:
            return manifest
    manifest = scan(session, dataset)
    if manifest.fingerprint() != store.spec.manifest:
        raise SpgError(
            f"The images or masks in {dataset.root} are not those of {store.path}. "
            "Run `spg-pipe extract --replace` and `spg-pipe score` again."
        )
    return manifest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file: categories, then their mean."""
    from spg_pipe.metrics import read_json

    return read_json(path)


def tables_of(params: Params, runs: list[list[dict[str, Any]]]) -> list[str]:
    """Tables for the terminal of one direction: each seed's, and their mean ± deviation."""
    from spg_pipe.metrics import seeds_mean
    from spg_pipe.report.text import text_table

    context = runs[0][0]
    published = next(
        (
            p
            for p in params.published
            if (p.aux, p.target) == (context["auxiliary"], context["dataset"])
        ),
        None,
    )
    tables = [text_table(rows, published) for rows in runs]
    if len(runs) > 1:
        tables.append(text_table(seeds_mean(runs), published))
    return tables


def report(session: Session) -> Path:
    """Metrics and Scores of every direction → report/index.html.

    A seed or direction without them is named on the page.

    Raises
    ------
    SpgError
        If there is nothing to report: no metrics that the recipe in force makes.
    """
    from spg_pipe.report.build import build_report

    params, paths = session.params, session.paths
    if not params.directions:
        raise SpgError("The recipe has no directions, so there is nothing to report.")
    runs, missing = {}, []
    for direction in params.directions:
        for seed in params.seeds:
            try:
                found = find_run(session, direction, seed)
            except SpgError as error:
                missing.append(str(error))
            else:
                runs[direction.aux, direction.target, seed] = (found.metrics, found.scores)
    if not runs:
        raise SpgError(missing[0])
    for message in missing:
        session.console.say(f"Left out of the report: {message}")
    place = session.place(paths.report, params)
    with session.console.progress("report", "categories") as update:
        path = build_report(params, paths, place, runs=runs, progress=update)
    session.console.say(f"Report → {path}")
    return path
