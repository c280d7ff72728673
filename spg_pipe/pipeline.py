"""One function a stage: the commands and the scripts in stages/ only parse and call these.

Every function takes a recipe, works in the recipe's paths (`paths.py`) and returns the path of
the artefact that it wrote.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.console import Console, choose_device, cpu_workers
from spg_pipe.errors import SpgError
from spg_pipe.params import Dataset, Direction, Params
from spg_pipe.paths import Paths, with_suffix_hash

if TYPE_CHECKING:
    from spg_pipe.backbones.base import Backbone
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.detector import Detector
    from spg_pipe.store.reader import FeatureStore


@dataclass(frozen=True)
class Session:
    """A recipe with the settings of this run, which no artefact depends on."""

    params: Params
    console: Console
    device: str = "auto"
    workers: int | None = None
    variant: bool = False
    """Options differ from params.yaml: new artefacts get a hash in their names."""

    @property
    def paths(self) -> Paths:
        """Where the recipe's artefacts are."""
        return Paths(self.params, image_size(self.params))

    def place(self, path: Path, *content: Any) -> Path:
        """The pipeline's path, or a readable name + 8 hex digits for other options."""
        if not self.variant:
            return path
        return with_suffix_hash(path, hashlib.sha256(repr(content).encode()).hexdigest())


def image_size(params: Params) -> int:
    """S: as the recipe says, or the backbone's default."""
    from spg_pipe.backbones.names import find_alias

    if params.backbone.image_size is not None:
        return params.backbone.image_size
    known = find_alias(params.backbone.alias)
    return known.image_size if known else 448


def find_dataset(params: Params, split: str) -> Dataset:
    """A dataset by what `--split` says: `visa`, `visa/train`, or a folder of images.

    Raises
    ------
    SpgError
        If it is none of these.
    """
    name, _, part = split.partition("/")
    known = {dataset.name for dataset in params.datasets}
    if name in known and part in ("", "test", "train", "all"):
        dataset = params.dataset(name)
        return dataset.model_copy(update={"split": part or dataset.split})
    folder = Path(split)
    if folder.is_dir():
        label = folder.resolve().name.replace(" ", "-")
        return Dataset.model_validate(
            {"name": label, "layout": "folder", "root": folder, "split": "all"}
        )
    raise SpgError(
        f"--split {split}: there is no such dataset in the recipe "
        f"(it has: {', '.join(sorted(known))}) and no such folder. Name one of these, append "
        "/train or /test, give a folder of images, or switch the recipe, for instance "
        "`spg-pipe recipe use paper-dinov3 --mvtec DIR --visa DIR`."
    )


def datasets_of(params: Params, split: str | None) -> list[Dataset]:
    """What `--split` names, or every dataset of the recipe."""
    return list(params.datasets) if split is None else [find_dataset(params, split)]


def training_runs(
    params: Params, aux: str | None, seed: int | None, given: Path | None
) -> list[tuple[str, int]]:
    """(auxiliary, seed) pairs to train: as named, or all of the recipe.

    Raises
    ------
    SpgError
        If one given store or SAE would serve several runs.
    """
    names = [aux] if aux else list(params.auxiliaries)
    runs = [(name, one) for name in names for one in ([seed] if seed is not None else params.seeds)]
    if given is not None and len(runs) > 1:
        raise SpgError(f"{given} serves one run, the recipe has {len(runs)}: add --aux and --seed.")
    return runs


def targets_of(params: Params, split: str | None, aux: str | None) -> list[tuple[str, str | None]]:
    """(target, auxiliary) pairs to score: what `--split` names, or the recipe's directions."""
    if split is not None:
        return [(split, aux)]
    return [(d.target, d.aux) for d in params.directions if aux in (None, d.aux)]


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


def find_store(session: Session, dataset: Dataset) -> "FeatureStore":
    """The store of a dataset with the recipe's backbone.

    The pipeline's path comes first, then any finished store under artifacts/features that fits.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    from spg_pipe.store.reader import FeatureStore

    first = session.paths.store(dataset.name)
    if _store_fits(first, session, dataset):
        return FeatureStore(first)
    folder = session.params.artifacts / "features"
    fits = [path for path in sorted(folder.glob("*.zarr")) if _store_fits(path, session, dataset)]
    if len(fits) == 1:
        return FeatureStore(fits[0])
    what = f"{dataset.name}/{dataset.split} with {session.params.backbone.alias}"
    if fits:
        listed = "\n  ".join(map(str, fits))
        raise SpgError(f"Several stores fit {what}; name one with --store:\n  {listed}")
    raise SpgError(
        f"There is no finished feature store of {what} at {image_size(session.params)} px under "
        f"{folder}. Run `spg-pipe extract --split {dataset.name}` with the same options first"
        + (f" (the folder of {dataset.name}, {dataset.root}, does not exist here)."
           if not dataset.root.exists() else ".")
    )


def _store_fits(path: Path, session: Session, dataset: Dataset) -> bool:
    from spg_pipe.store.schema import read_attributes

    found = read_attributes(path)
    if found is None:
        return False
    wanted = session.params.backbone
    backbone = found.get("backbone", {})
    return (
        found.get("dataset") == dataset.name
        and found.get("split") == dataset.split
        and backbone.get("alias") == wanted.alias
        and backbone.get("preprocess", {}).get("size") == image_size(session.params)
        and (wanted.layers is None or list(backbone.get("layers", ())) == list(wanted.layers))
        and (wanted.norm is None or backbone.get("norm") == wanted.norm)
    )


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
    from spg_pipe.guides.train import train_guides as run
    from spg_pipe.sae.model import SaeRun

    features = _open_store(session, aux, store)
    params = session.params
    source = sae or _find_run(
        session.paths.sae(aux, seed), features.fingerprint, seed, "sae", "--sae", "train-sae"
    )
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


def _find_run(
    first: Path, store: str, seed: int, what: str, option: str, command: str
) -> Path:
    """An SAE or detector made from a store: the pipeline's path, or the one that fits.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    from spg_pipe.artifacts import read_json

    def fits(path: Path) -> bool:
        if not (path / "config.json").is_file():
            return False
        config = read_json(path / "config.json", what)
        return config["inputs"].get("store") == store and config["seed"] == seed

    if fits(first):
        return first
    found = [path for path in sorted(first.parent.glob("*")) if fits(path)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n  ".join(map(str, found))
        raise SpgError(f"Several fit; name one with {option}:\n  {listed}")
    hint = "it was made from another store" if first.exists() else "it does not exist"
    raise SpgError(f"{first}: {hint}. Run `spg-pipe {command}` first, or name one with {option}.")


def find_direction(params: Params, target: str, aux: str | None = None) -> Direction:
    """The recipe's direction with this target.

    Raises
    ------
    SpgError
        If the recipe has none, or several and `aux` does not say which.
    """
    fits = [d for d in params.directions if d.target == target and aux in (None, d.aux)]
    if len(fits) == 1:
        return fits[0]
    listed = ", ".join(f"{d.aux} → {d.target}" for d in params.directions)
    if fits:
        raise SpgError(f"Several directions have target {target!r} ({listed}); add --aux NAME.")
    raise SpgError(
        f"No direction of the recipe has target {target!r} (it has: {listed}). "
        "Name a detector with --detector, or add the direction to params.yaml."
    )


def find_detector(session: Session, aux: str, seed: int) -> Path:
    """The detector that the recipe trained on `aux`."""
    features = find_store(session, find_dataset(session.params, aux))
    first = session.paths.detector(aux, seed)
    return _find_run(
        first, features.fingerprint, seed, "Detector", "--detector", "train-guides"
    )


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
        place = session.params.artifacts / "metrics" / session.params.name / scores.name
        return [_evaluate_one(session, dataset, scores, place.with_name(f"{place.name}.json"))]
    direction = find_direction(session.params, dataset.name, aux)
    written = []
    for one in [seed] if seed is not None else session.params.seeds:
        folder = find_scores(session, direction, one)
        place = session.paths.metrics(direction.aux, direction.target, one)
        if folder.name != session.paths.scores(direction.aux, direction.target, one).name:
            place = place.with_name(f"{folder.name}.json")
        written.append(_evaluate_one(session, dataset, folder, place))
    return written


def find_scores(session: Session, direction: Direction, seed: int) -> Path:
    """The scores of a direction: the pipeline's path, or the one beside it that fits.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    first = session.paths.scores(direction.aux, direction.target, seed)
    if not session.variant and (first / "config.json").is_file():
        return first
    found = sorted(first.parent.glob(f"{first.name}-????????"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n  ".join(map(str, found))
        raise SpgError(f"Several scores fit; name one with --scores:\n  {listed}")
    raise SpgError(
        f"There are no scores of {direction.target} under {first}. "
        f"Run `spg-pipe score --split {direction.target}` first."
    )


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


def find_store_of(session: Session, fingerprint: str) -> "FeatureStore":
    """The finished store with this fingerprint.

    Raises
    ------
    SpgError
        If it is not under artifacts/features.
    """
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.store.schema import read_attributes

    folder = session.params.artifacts / "features"
    for path in sorted(folder.glob("*.zarr")):
        if (read_attributes(path) or {}).get("fingerprint") == fingerprint:
            return FeatureStore(path)
    raise SpgError(
        f"No store under {folder} has the fingerprint {fingerprint[:8]} that was scored. "
        "It was replaced or removed: run `spg-pipe extract` and `spg-pipe score` again."
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file: categories, then their mean."""
    from spg_pipe.metrics import read_json

    return read_json(path)


def report(session: Session) -> Path:
    """Metrics and Scores of every direction → report/index.html."""
    from spg_pipe.report.build import build_report

    path = build_report(session.params, session.paths, session.paths.report)
    session.console.say(f"Report → {path}")
    return path
