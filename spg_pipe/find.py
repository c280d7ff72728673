"""Finding datasets and their feature stores by name: the pipeline's own path first."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.errors import SpgError
from spg_pipe.params import Dataset, Params
from spg_pipe.protocol import protocol
from spg_pipe.session import Session, image_size

if TYPE_CHECKING:
    from spg_pipe.datasets.manifest import Manifest
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
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("._-")
        return Dataset.model_validate(
            {"name": label or "images", "layout": "folder", "root": folder, "split": "all"}
        )
    raise SpgError(
        f"--split {split}: there is no such dataset in the recipe "
        f"(it has: {', '.join(sorted(known))}) and no such folder. Name one of these, append "
        "/train or /test, give a folder of images, or switch the recipe, for instance "
        "`spg-pipe recipe use paper-dinov3 --mvtec DIR --visa DIR`."
    )


def scan(session: Session, dataset: Dataset) -> "Manifest":
    """Look at a dataset's folder: names, sizes and content hashes."""
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
            exif_of_own_images=protocol(session.params.method.protocol).exif_of_own_images,
            progress=update,
        )


def store_of_dataset(session: Session, dataset: Dataset, given: Path | None) -> "FeatureStore":
    """The store that `--store` names, checked, or the recipe's.

    Raises
    ------
    SpgError
        If the named store holds another dataset or split, or none is found.
    """
    from spg_pipe.store.reader import FeatureStore

    if given is None:
        store = find_store(session, dataset)
    else:
        store = FeatureStore(given)
        found = f"{store.spec.dataset}/{store.spec.split}"
        wanted = f"{dataset.name}/{dataset.split}"
        if found != wanted:
            raise SpgError(
                f"{given} holds {found}, not {wanted}. Name the dataset that it holds, "
                "or another store."
            )
    session.console.detail(f"store {store.path}")
    return store


def find_store(session: Session, dataset: Dataset) -> "FeatureStore":
    """The store of a dataset with the recipe's backbone.

    The pipeline's path comes first, then any finished store under artifacts/features that fits.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    from spg_pipe.store.reader import FeatureStore

    content = None
    if dataset not in session.params.datasets and dataset.root.is_dir():
        # A name alone says little about a folder: its content decides.
        content = scan(session, dataset).fingerprint()
    first = session.paths.store(dataset.name)
    if _store_fits(first, session, dataset, content):
        return FeatureStore(first)
    folder = session.params.artifacts / "features"
    stores = sorted(folder.glob("**/*.zarr"))
    fits = [path for path in stores if _store_fits(path, session, dataset, content, finished=True)]
    if len(fits) == 1:
        return FeatureStore(fits[0])
    what = f"{dataset.name}/{dataset.split} with {session.params.backbone.alias}"
    if fits:
        listed = "\n  ".join(map(str, fits))
        raise SpgError(f"Several stores fit {what}; name one with --store:\n  {listed}")
    absent = f" (its folder, {dataset.root}, does not exist here)"
    raise SpgError(
        f"There is no finished feature store of {what} at {image_size(session.params)} px under "
        f"{folder}. Run `spg-pipe extract --split {dataset.name}` with the same options first"
        + ("." if dataset.root.exists() else absent + ".")
    )


def _store_fits(
    path: Path,
    session: Session,
    dataset: Dataset,
    manifest: str | None,
    *,
    finished: bool = False,
) -> bool:
    """Whether a store has what the recipe asks for; `manifest` is a fingerprint, if it counts."""
    from spg_pipe.datasets.layouts import honours_exif
    from spg_pipe.store.schema import read_attributes

    found = read_attributes(path)
    exif_of_own_images = protocol(session.params.method.protocol).exif_of_own_images
    if found is None or "backbone" not in found or (finished and not found.get("complete")):
        return False
    wanted = session.params.backbone
    backbone = found["backbone"]
    return (
        found.get("dataset") == dataset.name
        and found.get("split") == dataset.split
        and manifest in (None, found.get("manifest"))
        and found.get("exif") == honours_exif(dataset.layout, exif_of_own_images)
        and found.get("dtype") == session.params.extract.dtype
        and backbone.get("alias") in (wanted.alias, _canonical(wanted.alias))
        and backbone.get("preprocess", {}).get("size") == image_size(session.params)
        and (wanted.layers is None or list(backbone.get("layers", ())) == list(wanted.layers))
        and (wanted.norm is None or backbone.get("norm") == wanted.norm)
        and (wanted.weights is None or backbone.get("weights") == f"file: {wanted.weights.name}")
        and _protocol_fits(backbone, session.params)
    )


def _protocol_fits(backbone: dict[str, Any], params: Params) -> bool:
    """What a protocol changes in tokens: CLIP's position embedding, DINOv2's norm (§5)."""
    published = params.method.protocol == "spg"
    if backbone.get("family") == "open_clip":
        return bool(backbone.get("pos_embed") == ("bilinear" if published else "native"))
    if params.backbone.norm is None and "dinov2" in str(backbone.get("model")):
        expected = "pre" if published or "imgfocus" in str(backbone.get("alias")) else "post"
        return bool(backbone.get("norm") == expected)
    return True


def _canonical(alias: str) -> str:
    """`dinov3` → `dinov3-large`, as a store's spec has it; other names without their family."""
    from spg_pipe.backbones.names import find_alias

    info = find_alias(alias)
    return info.alias if info else alias.removeprefix("timm:")


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
