"""Finding datasets and their feature stores by name: the pipeline's own path first."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.pipeline.run import RecipeRun, image_size
from spg_pipe.recipe.params import Dataset, ExtractParams, Params
from spg_pipe.recipe.protocol import protocol

if TYPE_CHECKING:
    from spg_pipe.datasets.manifest import Manifest
    from spg_pipe.datasets.skipped import Skipped
    from spg_pipe.store.reader import FeatureStore


def datasets_of(params: Params, split: str | None) -> list[Dataset]:
    """What `--split` names, or every dataset of the recipe."""
    return list(params.datasets) if split is None else [find_dataset(params, split)]


def find_dataset(params: Params, split: str, *, option: str = "--split") -> Dataset:
    """A dataset by what `--split` or a like option says: `visa`, `visa/train`, or a folder.

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
        f"{option} {split}: there is no such dataset in the recipe "
        f"(it has: {', '.join(sorted(known))}) and no such folder. Name one of these, append "
        "/train or /test, give a folder of images, or switch the recipe, for instance "
        "`spg-pipe recipe use paper-dinov3 --mvtec DIR --visa DIR`."
    )


def split_name(params: Params, dataset: Dataset) -> str:
    """What `--split` says for a dataset that `find_dataset` found."""
    if dataset in params.datasets:
        return dataset.name
    # A folder that happens to be called as a dataset of the recipe is none of its splits.
    listed = any((one.name, one.root) == (dataset.name, dataset.root) for one in params.datasets)
    return f"{dataset.name}/{dataset.split}" if listed else shlex.quote(str(dataset.root))


def scan(
    run: RecipeRun,
    dataset: Dataset,
    *,
    skip_bad: bool = False,
    leave_out: "Sequence[Skipped]" = (),
) -> "Manifest":
    """Look at a dataset's folder: names, sizes and content hashes.

    Parameters
    ----------
    skip_bad : bool
        Leave out images that cannot be used; every image is decoded for it.
    leave_out : sequence of Skipped
        Leave out these, which were found to be bad before, while their files are the same.
    """
    from spg_pipe.datasets import build_manifest

    with run.console.progress(f"prepare {dataset.name}") as update:
        return build_manifest(
            dataset,
            exif_of_own_images=protocol(run.params.method.protocol).exif_of_own_images,
            skip_bad=skip_bad,
            leave_out=leave_out,
            workers=run.workers,
            progress=update,
        )


def names_on_disk(dataset: Dataset) -> list[str]:
    """Relative paths of a dataset's images, in a store's order."""
    from spg_pipe.datasets import list_images

    return list_images(dataset)


def store_of_dataset(run: RecipeRun, dataset: Dataset, given: Path | None) -> "FeatureStore":
    """The store that `--store` names, checked, or the recipe's.

    Raises
    ------
    SpgError
        If the named store holds another dataset or split, or none is found.
    """
    from spg_pipe.store.reader import FeatureStore, selection_note

    if given is None:
        store = find_store(run, dataset)
    else:
        store = FeatureStore(given)
        found = f"{store.spec.dataset}/{store.spec.split}"
        wanted = f"{dataset.name}/{dataset.split}"
        if found != wanted:
            raise SpgError(
                f"{given} holds {found}, not {wanted}. Name the dataset that it holds, "
                "or another store."
            )
        if store.selection:
            run.console.say(f"Note: {given} is a part of {wanted}: {selection_note(store)}.")
    run.console.detail(f"store {store.path}")
    return store


def find_store(run: RecipeRun, dataset: Dataset) -> "FeatureStore":
    """The store of a dataset with the recipe's backbone.

    The pipeline's path comes first, then any finished store under artifacts/features that fits.
    A store of a part of the dataset (--limit, --categories) never does.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    from spg_pipe.store.reader import FeatureStore

    images = _Images.of(run, dataset)
    first = run.paths.store(dataset.name)
    if _store_fits(first, run, dataset, images):
        return FeatureStore(first)
    folder = run.params.artifacts / "features"
    stores = sorted(folder.glob("**/*.zarr"))
    fits = [path for path in stores if _store_fits(path, run, dataset, images, finished=True)]
    if len(fits) == 1:
        return FeatureStore(fits[0])
    what = f"{dataset.name}/{dataset.split} with {run.params.backbone.alias}"
    if fits:
        listed = "\n  ".join(map(str, fits))
        raise SpgError(f"Several stores fit {what}; name one with --store:\n  {listed}")
    absent = f" (its folder, {dataset.root}, does not exist here)"
    raise NotThereError(
        f"There is no finished feature store of {what} at {image_size(run.params)} px under "
        f"{folder} that was made from these images and weights. Run `spg-pipe extract --split "
        f"{split_name(run.params, dataset)}` with the same options first"
        + ("." if dataset.root.exists() else absent + "."),
        command="extract",
    )


@dataclass(frozen=True)
class _Images:
    """What is known of a dataset's images without hashing them all again."""

    root: Path
    names: list[str] | None
    """Relative paths on disk, in a store's order; None where the folder is not here."""
    manifest: "Callable[[tuple[Skipped, ...]], Manifest] | None"
    """The manifest without some images: of the prepared one, or of a folder that the recipe does
    not list, whose names alone say little."""

    @classmethod
    def of(cls, run: RecipeRun, dataset: Dataset) -> "_Images":
        from spg_pipe.datasets import Manifest

        if not dataset.root.is_dir():
            return cls(dataset.root, None, None)
        names = names_on_disk(dataset)
        if dataset not in run.params.datasets:
            # Once for each set of images to leave out: nearly always none.
            look = lru_cache(maxsize=None)(lambda bad: scan(run, dataset, leave_out=bad))
            return cls(dataset.root, names, look)
        path = run.paths.manifest(dataset.name, dataset.split)
        prepared = Manifest.load(path, dataset.root) if path.is_file() else None
        if prepared is None or not _is_of(prepared, names):
            return cls(dataset.root, names, None)
        return cls(dataset.root, names, lambda bad: prepared.without([b.path for b in bad]))

    def are_in(self, path: Path, found: dict[str, Any]) -> bool:
        """Whether a store has these images, but for those that it says it could not use."""
        from spg_pipe.datasets.skipped import recorded

        try:
            bad = tuple(one for one in recorded(found.get("skipped")) if one.unchanged(self.root))
        except SpgError:
            return False  # damaged: not a store to take by itself
        left_out = {one.path for one in bad}
        return (
            self.names is None
            or _holds(path, [n for n in self.names if n not in left_out], found.get("complete"))
        ) and (self.manifest is None or self.manifest(bad).fingerprint() == found.get("manifest"))


def _is_of(manifest: "Manifest", names: list[str]) -> bool:
    """Whether a prepared manifest is of these files: none came or went or was repaired since."""
    left_out = {bad.path for bad in manifest.skipped if bad.unchanged(manifest.root)}
    return manifest.table["path"].tolist() == [name for name in names if name not in left_out]


def _store_fits(
    path: Path, run: RecipeRun, dataset: Dataset, images: _Images, *, finished: bool = False
) -> bool:
    """Whether a store has what the recipe asks for."""
    from spg_pipe.datasets.layouts.catalogue import honours_exif
    from spg_pipe.store.schema import read_attributes

    found = read_attributes(path)
    exif_of_own_images = protocol(run.params.method.protocol).exif_of_own_images
    if found is None or "backbone" not in found or (finished and not found.get("complete")):
        return False
    return (
        found.get("dataset") == dataset.name
        and found.get("split") == dataset.split
        and not found.get("selection")
        and found.get("exif") == honours_exif(dataset.layout, exif_of_own_images)
        and found.get("dtype") == run.params.extract.dtype
        and backbone_fits(found["backbone"], run.params)
        and _tiles_fit(found["backbone"].get("tiles"), run.params.extract, dataset.name)
        and images.are_in(path, found)
    )


def _holds(path: Path, names: list[str], complete: object) -> bool:
    """Whether a store lists these images. Of an unfinished one the reader says what is wrong."""
    import zarr

    if not complete:
        return True
    try:
        return zarr.open_array(path / "path", mode="r")[...].tolist() == names  # type: ignore[union-attr]
    except (OSError, ValueError):
        return True  # damaged: the reader names what


def backbone_fits(backbone: dict[str, Any], params: Params) -> bool:
    """Whether an artefact's backbone is the one that a recipe names.

    Parameters
    ----------
    backbone : dict
        `BackboneSpec.to_dict()` of a store, an SAE, a detector or scores.
    """
    from spg_pipe.backbones.load import resolve
    from spg_pipe.backbones.names import find_alias

    wanted = params.backbone
    info = find_alias(wanted.alias) or resolve(wanted.alias)
    layers = list(wanted.layers or info.layers)
    return (
        backbone.get("alias") == info.alias
        and _view_size(backbone) == image_size(params)
        and (not layers or list(backbone.get("layers", ())) == layers)
        and (wanted.norm is None or backbone.get("norm") == wanted.norm)
        and _protocol_fits(backbone, params)
        and _weights_fit(backbone, wanted.weights)
    )


def _view_size(backbone: dict[str, Any]) -> Any:
    """Pixels that the network itself sees: of a tile, where there are tiles."""
    return (backbone.get("tiles") or backbone.get("preprocess") or {}).get("size")


def _tiles_fit(tiles: dict[str, Any] | None, wanted: ExtractParams, dataset: str) -> bool:
    """Whether a store is cut as the recipe cuts the dataset, or not at all."""
    sides = sorted(wanted.tiles.get(dataset, ()))
    if not tiles or not sides:
        return not tiles and not sides
    return bool(tiles.get("sides") == sides and tiles.get("overlap") == wanted.tile_overlap)


def _protocol_fits(backbone: dict[str, Any], params: Params) -> bool:
    """What a protocol changes in tokens: CLIP's position embedding, DINOv2's norm, SigLIP's
    stand-in for CLS (docs/method.md §5)."""
    published = params.method.protocol == "spg"
    if backbone.get("family") == "open_clip":
        return bool(backbone.get("pos_embed") == ("bilinear" if published else "native"))
    if backbone.get("family") == "timm-vit" and "siglip" in str(backbone.get("model")):
        return bool(backbone.get("prefix") == ("zeros" if published else "mean"))
    if params.backbone.norm is None and "dinov2" in str(backbone.get("model")):
        expected = "pre" if published or "imgfocus" in str(backbone.get("alias")) else "post"
        return bool(backbone.get("norm") == expected)
    return True


def _weights_fit(backbone: dict[str, Any], weights: Path | None) -> bool:
    """Local weights count by their content, whatever the file is called."""
    if weights is None:
        return not str(backbone.get("weights")).startswith("file: ")
    if not weights.is_file():
        # Scoring needs no weights: they may be gone since. The name is all there is to go by.
        return bool(backbone.get("weights") == f"file: {weights.name}")
    stat = weights.stat()
    return bool(backbone.get("weights_sha256") == _hash(weights, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=8)
def _hash(weights: Path, _size: int, _modified: int) -> str:
    """SHA-256 of a weight file's tensors, once a process for each state of the file."""
    from spg_pipe.backbones.weights import weights_from_file

    return weights_from_file(weights).sha256


def find_store_of(run: RecipeRun, fingerprint: str) -> "FeatureStore":
    """The finished store with this fingerprint.

    Raises
    ------
    SpgError
        If it is not under artifacts/features.
    """
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.store.schema import read_attributes

    folder = run.params.artifacts / "features"
    for path in sorted(folder.glob("**/*.zarr")):
        if (read_attributes(path) or {}).get("fingerprint") == fingerprint:
            return FeatureStore(path)
    raise SpgError(
        f"No store under {folder} has the fingerprint {fingerprint[:8]} that was scored. "
        "It was replaced or removed: run `spg-pipe extract` and `spg-pipe score` again."
    )
