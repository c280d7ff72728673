"""One function a stage: the commands and the scripts in stages/ only parse and call these.

Every function takes a session, works in the recipe's paths (`paths.py`) and returns the path of
the artefact that it wrote.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.console import choose_device, cpu_workers
from spg_pipe.errors import SpgError
from spg_pipe.find import (
    find_dataset,
    find_detector,
    find_direction,
    find_sae,
    find_scores,
    find_store,
    find_store_of,
)
from spg_pipe.params import Dataset, Params
from spg_pipe.paths import with_suffix_hash
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
    manifest = _build_manifest(session, dataset)
    path = session.paths.manifest(dataset.name, dataset.split)
    manifest.save(path)
    session.console.say(f"{dataset.name}/{dataset.split}: {len(manifest)} images → {path}")
    for note in manifest.notes:
        session.console.say(f"  note: {note}")
    return path


def _build_manifest(session: Session, dataset: Dataset) -> "Manifest":
    from spg_pipe.datasets import build_manifest

    with session.console.progress(f"prepare {dataset.name}") as update:
        return build_manifest(
            dataset.name,
            dataset.layout,
            dataset.root,
            split=dataset.split,
            sets=dataset.sets,
            categories=dataset.categories,
            licence=dataset.licence,
            progress=update,
        )


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
    """
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.store.extract import extract as run

    if from_manifest:
        path = session.paths.manifest(dataset.name, dataset.split)
        manifest = Manifest.load(path, root=dataset.root)
    else:
        manifest = _build_manifest(session, dataset)
    backbone = load_backbone(session)
    params = session.params
    pipeline_split = any(
        d.name == dataset.name and d.split == dataset.split for d in params.datasets
    )
    place = session.paths.store(dataset.name)
    if not pipeline_split:
        place = with_suffix_hash(
            session.paths.store(f"{dataset.name}-{dataset.split}"), manifest.fingerprint()
        )
    place = out or session.place(place, backbone.spec.to_dict(), params.extract)
    with session.console.progress(f"extract {dataset.name}") as update:
        store = run(
            manifest,
            backbone,
            place,
            batch_images=params.extract.batch_images,
            shard_images=params.extract.shard_images,
            dtype=params.extract.dtype,
            replace=replace,
            workers=cpu_workers(session.workers),
            device=choose_device(session.device),
            progress=update,
        )
    session.console.say(f"{dataset.name}: {len(store)} images → {place}")
    return place


def train_sae(session: Session, aux: str, seed: int, *, store: Path | None = None) -> Path:
    """FeatureStore of the auxiliary set → SparseAutoencoder."""
    from spg_pipe.sae.train import train_sae as run

    features = _open_store(session, aux, store)
    params = session.params
    with session.console.progress(f"train-sae {aux} seed {seed}", "tokens") as update:
        result, quality, curve = run(
            features,
            params.sae,
            params.method,
            seed=seed,
            device=choose_device(session.device),
            progress=lambda layer, done, total, loss: update(done, total, loss, layer),
        )
    path = session.place(session.paths.sae(aux, seed), result.config["fingerprint"])
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
    from spg_pipe.sae.model import SaeRun

    features = _open_store(session, aux, store)
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
            progress=update,
        )
    path = session.place(session.paths.detector(aux, seed), detector.fingerprint)
    header = ",".join(curve[0])
    lines = [",".join(f"{value:.8g}" for value in row.values()) for row in curve]
    detector.save(path, "\n".join([header, *lines]) + "\n")
    session.console.say(f"Detector of {aux}, seed {seed} → {path}")
    return path


def _open_store(session: Session, name: str, store: Path | None) -> "FeatureStore":
    from spg_pipe.store.reader import FeatureStore

    if store is not None:
        return FeatureStore(store)
    return find_store(session, find_dataset(session.params, name))


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
    seeds: Sequence[int] = [seed] if seed is not None else session.params.seeds
    if detector is not None:
        loaded = Detector.load(detector)
        features = _open_store(session, target, store)
        source = str(loaded.config["auxiliary"]["dataset"])
        path = with_suffix_hash(
            session.paths.scores(source, dataset.name, int(loaded.config["seed"])),
            hashlib.sha256((loaded.fingerprint + features.fingerprint).encode()).hexdigest(),
        )
        return [_score_one(session, loaded, features, path)]
    direction = find_direction(session.params, dataset.name, aux)
    features = _open_store(session, target, store)
    written = []
    for one in seeds:
        loaded = Detector.load(find_detector(session, direction.aux, one))
        path = session.place(
            session.paths.scores(direction.aux, dataset.name, one), loaded.fingerprint
        )
        written.append(_score_one(session, loaded, features, path))
    return written


def _score_one(
    session: Session, detector: "Detector", features: "FeatureStore", path: Path
) -> Path:
    from spg_pipe.scoring import score_store

    with session.console.progress(f"score {features.spec.dataset}") as update:
        score_store(
            detector,
            features,
            path,
            score=session.params.score,
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
    if scores is not None:
        folder = session.params.artifacts / "metrics" / session.params.name
        place = session.place(folder / f"{scores.name}.json", session.params.metrics)
        return [_evaluate_one(session, dataset, scores, place)]
    direction = find_direction(session.params, dataset.name, aux)
    written = []
    for one in [seed] if seed is not None else session.params.seeds:
        folder = find_scores(session, direction, one)
        place = session.place(
            session.paths.metrics(direction.aux, direction.target, one),
            session.params.metrics,
            folder.name,
        )
        written.append(_evaluate_one(session, dataset, folder, place))
    return written


def _evaluate_one(session: Session, dataset: Dataset, folder: Path, place: Path) -> Path:
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.evaluation import evaluate_scores
    from spg_pipe.scoring import Scores

    params = session.params.metrics
    manifest = None
    if params.resolution == "original":
        prepared = session.paths.manifest(dataset.name, dataset.split)
        manifest = (
            Manifest.load(prepared, root=dataset.root)
            if prepared.exists()
            else _build_manifest(session, dataset)
        )
    loaded = Scores.load(folder)
    with session.console.progress(f"evaluate {dataset.name}") as update:
        result = evaluate_scores(
            loaded,
            find_store_of(session, loaded.config["inputs"]["store"]),
            params,
            manifest=manifest,
            progress=update,
        )
    result.save(place)
    session.console.say(f"Metrics of {dataset.name} → {place}")
    return place


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file: categories, then their mean."""
    from spg_pipe.metrics import read_json

    return read_json(path)


def report(session: Session) -> Path:
    """Metrics and Scores of every direction → report/index.html."""
    from spg_pipe.report.build import build_report

    with session.console.progress("report", "categories") as update:
        path = build_report(session.params, session.paths, session.paths.report, progress=update)
    session.console.say(f"Report → {path}")
    return path
