"""Finding datasets and artefacts by name: the pipeline's own path first, then what fits.

Several artefacts that fit are an error that lists them; none is an error that names the command
that makes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.artifacts import read_json
from spg_pipe.errors import SpgError
from spg_pipe.params import Dataset, Direction, Params
from spg_pipe.protocol import protocol
from spg_pipe.session import Session, image_size

if TYPE_CHECKING:
    from spg_pipe.store.reader import FeatureStore


def datasets_of(params: Params, split: str | None) -> list[Dataset]:
    """What `--split` names, or every dataset of the recipe."""
    return list(params.datasets) if split is None else [find_dataset(params, split)]


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
    fits = [
        path for path in sorted(folder.glob("**/*.zarr")) if _store_fits(path, session, dataset)
    ]
    if len(fits) == 1:
        return FeatureStore(fits[0])
    what = f"{dataset.name}/{dataset.split} with {session.params.backbone.alias}"
    if fits:
        listed = "\n  ".join(map(str, fits))
        raise SpgError(f"Several stores fit {what}; name one with --store:\n  {listed}")
    raise SpgError(
        f"There is no finished feature store of {what} at {image_size(session.params)} px under "
        f"{folder}. Run `spg-pipe extract --split {dataset.name}` with the same options first"
        + (
            f" (the folder of {dataset.name}, {dataset.root}, does not exist here)."
            if not dataset.root.exists()
            else "."
        )
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
        and backbone.get("alias") in (wanted.alias, _canonical(wanted.alias))
        and backbone.get("preprocess", {}).get("size") == image_size(session.params)
        and (wanted.layers is None or list(backbone.get("layers", ())) == list(wanted.layers))
        and (wanted.norm is None or backbone.get("norm") == wanted.norm)
    )


def _canonical(alias: str) -> str:
    """`dinov3` → `dinov3-large`, as a store's spec has it; other names without their family."""
    from spg_pipe.backbones.names import find_alias

    info = find_alias(alias)
    return info.alias if info else alias.removeprefix("timm:")


def find_sae(session: Session, features: "FeatureStore", aux: str, seed: int) -> Path:
    """The SAE that the recipe's `sae` section makes from a store.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    params = session.params
    wanted = {
        "sae": params.sae.model_dump(mode="json"),
        "protocol": protocol(params.method.protocol).to_dict(),
    }
    first = session.paths.sae(aux, seed)
    return _find_run(first, features, seed, wanted, option="--sae", command="train-sae")


def _find_run(
    first: Path,
    features: "FeatureStore",
    seed: int,
    wanted: dict[str, Any],
    *,
    option: str,
    command: str,
) -> Path:
    """An SAE or detector made from a store: the pipeline's path, or the one that fits.

    `wanted` are entries that its config must have, so that an artefact of other parameters is
    never taken silently.
    """

    def fits(path: Path) -> bool:
        if not (path / "config.json").is_file():
            return False
        config = read_json(path / "config.json", str(path))
        return (
            config["inputs"].get("store") == features.fingerprint
            and config["seed"] == seed
            and all(config.get(key) == value for key, value in wanted.items())
        )

    if fits(first):
        return first
    found = [path for path in sorted(first.parent.glob("*")) if fits(path)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n  ".join(map(str, found))
        raise SpgError(f"Several fit; name one with {option}:\n  {listed}")
    hint = "does not exist"
    if first.exists():
        hint = "was made from another store or with other parameters"
    raise SpgError(f"{first} {hint}. Run `spg-pipe {command}` first, or name one with {option}.")


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
    """The detector that the recipe's sections make from `aux`.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    params = session.params
    features = find_store(session, find_dataset(params, aux))
    wanted = {
        "guides": params.guides.model_dump(mode="json"),
        "tau": params.method.tau,
        "detection": params.method.detection,
        "protocol": protocol(params.method.protocol).to_dict(),
    }
    first = session.paths.detector(aux, seed)
    return _find_run(first, features, seed, wanted, option="--detector", command="train-guides")


def find_scores(session: Session, direction: Direction, seed: int) -> Path:
    """The scores of a direction that the recipe's sections make.

    Raises
    ------
    SpgError
        If there are none, or several fit.
    """
    params = session.params
    first = session.paths.scores(direction.aux, direction.target, seed)
    wanted = {
        "score": params.score.model_dump(mode="json"),
        "guides": params.guides.model_dump(mode="json"),
        "sae": params.sae.model_dump(mode="json"),
        "protocol": protocol(params.method.protocol).to_dict(),
    }

    def fits(path: Path) -> bool:
        if not (path / "config.json").is_file():
            return False
        config = read_json(path / "config.json", str(path))
        detector = config["detector"]
        found = {
            "score": config["score"],
            "guides": detector["guides"],
            "sae": detector["sae"]["sae"],
            "protocol": detector["protocol"],
        }
        return found == wanted

    if fits(first):
        return first
    found = [path for path in sorted(first.parent.glob(f"{first.name}-????????")) if fits(path)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n  ".join(map(str, found))
        raise SpgError(f"Several scores fit; name one with --scores:\n  {listed}")
    hint = "was made with other parameters" if first.exists() else "does not exist"
    raise SpgError(f"{first} {hint}. Run `spg-pipe score --split {direction.target}` first.")


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
    for path in sorted(folder.glob("**/*.zarr")):
        if (read_attributes(path) or {}).get("fingerprint") == fingerprint:
            return FeatureStore(path)
    raise SpgError(
        f"No store under {folder} has the fingerprint {fingerprint[:8]} that was scored. "
        "It was replaced or removed: run `spg-pipe extract` and `spg-pipe score` again."
    )
