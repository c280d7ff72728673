"""What a store is on the disk: its attributes and its arrays; docs/store.md is normative."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from pydantic import AfterValidator, Field, model_validator
from zarr.codecs import ZstdCodec

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.artefacts.record import LARGEST_SIDE, Count, LayerName, Name, Record, Size, Text
from spg_pipe.backbones.spec import LABELS, BackboneSpec
from spg_pipe.datasets.manifest import Skipped

if TYPE_CHECKING:
    from spg_pipe.store.reader import FeatureStore

SCHEMA_VERSION: Final = 2
SHARD_INDEX = "shards.json"
ZSTD_LEVEL = 3
"""Of masks, which shrink a hundredfold, and of tokens where `compressor` is zstd."""
COMMAND = "spg-pipe extract --replace"
REMAKE = f"`{COMMAND}` and the same options"
MOST_VALUES = 2**31
"""Of one image's tokens in a layer: 4 to 8 GB."""
MOST_MASK_BYTES = 64 * LARGEST_SIDE**2
"""Of a shard's masks."""


class LayerShape(Record):
    """What one layer gives for every image."""

    grid: tuple[Size, Size]
    """Patch rows and columns (h, w); patches are stored row-major."""
    dim: Annotated[int, Field(ge=1, le=2**20)]
    """Token width D."""
    prefix: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    """Names of the prefix tokens: ``cls``, or ``mean`` or ``zeros`` in its place."""

    @model_validator(mode="after")
    def _bounded(self) -> "LayerShape":
        if self.patches * self.dim > MOST_VALUES:
            raise ValueError(f"an image has {self.patches} × {self.dim} values, over {MOST_VALUES}")
        return self

    @property
    def patches(self) -> int:
        """N = h·w."""
        return self.grid[0] * self.grid[1]


class Selection(Record):
    """The part of a dataset that options chose."""

    categories: tuple[Text, ...] = ()
    """Those alone; empty: all."""
    limit: Count | None = None
    """Images, of …"""
    of: Count | None = None
    """… so many."""

    @classmethod
    def of_store(cls, store: "FeatureStore") -> "Selection | None":
        """None for a whole dataset."""
        return cls.model_validate(store.selection) if store.selection else None

    @classmethod
    def checked(cls, selection: dict[str, object]) -> dict[str, object]:
        """A selection as manifests have it, or ValueError."""
        cls.model_validate(selection)
        return selection


class StoreSpec(Record):
    """The attributes of a store: what determines its content, then what is said beside it."""

    BESIDE: ClassVar[frozenset[str]] = frozenset(
        {"fingerprint", "licences", "notes", "skipped", "selection", "sources", "layout"}
        | {"versions", "complete"}
    )

    schema_version: Literal[2] = Field(default=SCHEMA_VERSION, alias="schema")
    dataset: Name
    split: Name
    manifest: Name
    """The manifest's fingerprint: relative paths and content hashes."""
    images: Annotated[int, Field(ge=1, le=10**9)]
    backbone: BackboneSpec
    layers: dict[LayerName, LayerShape]
    shard_images: Annotated[int, Field(ge=1, le=10**6)]
    batch_images: Annotated[int, Field(ge=1, le=10**6)]
    dtype: Literal["float16", "float32"]
    """Of tokens and prefix tokens."""
    exif: bool
    compressor: Literal["none", "zstd"] = "none"
    """Of the tokens. `none` puts every image at a fixed offset; `zstd` is for archives."""
    fingerprint: Name = ""
    licences: tuple[Text, ...]
    """Of the data and of the weights."""
    notes: tuple[str, ...]
    """What a person should know of the images."""
    skipped: tuple[Skipped, ...]
    """Images that were left out because they could not be used."""
    selection: Annotated[dict[str, object], AfterValidator(Selection.checked)]
    """How options chose a part of the dataset (`Manifest.selection`); empty for all of it."""
    sources: dict[str, str]
    """Of a synthetic set, path → `source_id` of the normal image behind it; else empty."""
    layout: Name
    versions: dict[Name, Name]
    complete: bool = False
    """Set last, once every file is in its place."""

    @model_validator(mode="after")
    def _agree(self) -> "StoreSpec":
        self.backbone.require_layers(self.layers)
        size = self.backbone.preprocess.size
        if any(side > size for shape in self.layers.values() for side in shape.grid):
            raise ValueError(f"a grid has more patches along a side than the image {size} pixels")
        if self.shard_images * size**2 > MOST_MASK_BYTES:
            raise ValueError(f"the masks of a shard have more than {MOST_MASK_BYTES:,} bytes")
        return self

    def attributes(self) -> dict[str, Any]:
        """The group's attributes as JSON has them."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def content(self) -> dict[str, object]:
        """What determines the tokens: never time, host, absolute path or library version."""
        left_out: Any = dict.fromkeys(self.BESIDE, True) | {"backbone": set(LABELS)}
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=left_out)

    @property
    def shards(self) -> int:
        """Number of shards a layer."""
        return -(-self.images // self.shard_images)

    def shard_rows(self, shard: int) -> range:
        """Image rows of a shard; the last may be short."""
        start = shard * self.shard_images
        return range(start, min(start + self.shard_images, self.images))

    def image_bytes(self, layer: str) -> int:
        """Bytes of one image's patch tokens, as a reader gives them."""
        shape = self.layers[layer]
        return shape.patches * shape.dim * np.dtype(self.dtype).itemsize

    def encode_tokens(self, image: memoryview) -> bytes | memoryview:
        """The bytes of one image's tokens as an inner chunk of a shard."""
        return image if self.compressor == "none" else _zstd().encode(image)


def encode_mask(mask: np.ndarray) -> bytes:
    """One image's mask (S, S) uint8 as an inner chunk of a shard."""
    return bytes(_zstd().encode(np.ascontiguousarray(mask)))


def decode_mask(encoded: bytes, size: int) -> np.ndarray:
    """The inverse of `encode_mask`."""
    return np.frombuffer(_zstd().decode(encoded), np.uint8).reshape(size, size)


def _zstd() -> Any:
    return Zstd(level=ZSTD_LEVEL, checksum=False)


IMAGE_TABLE = {
    "path": "object",
    "category": "object",
    "defect": "object",
    "label": "uint8",
    "mask_state": "uint8",
    "height": "int32",
    "width": "int32",
}
"""Small arrays with a value an image that a manifest has, and how they are stored."""


def large_arrays(spec: StoreSpec) -> list[str]:
    """The arrays that `create_arrays` declares: tokens, prefix tokens and masks."""
    return [f"{kind}_{name}" for name in spec.layers for kind in ("tokens", "prefix")] + ["mask"]


def small_arrays(spec: StoreSpec) -> list[str]:
    """The arrays that are written once all shards are there, each one file."""
    layers = [f"{kind}_{name}" for name in spec.layers for kind in ("mean", "std", "checksum")]
    return ["lost_regions", *IMAGE_TABLE, *layers]


def create_arrays(root: Path, spec: StoreSpec) -> None:
    """Write the metadata of the group and of the large arrays; no data yet.

    Tokens are sharded by `shard_images` with one image an inner chunk and no compressor, so that
    an image's bytes lie at a fixed offset of its shard (docs/store.md).
    """
    group, count = zarr.create_group(root, attributes=spec.attributes()), spec.shard_images
    zstd = ZstdCodec(level=ZSTD_LEVEL)

    def declare(name: str, axes: dict[str, int], *, sharded: bool, **options: Any) -> None:
        image = tuple(axes.values())
        chunks, shards = ((1, *image), (count, *image)) if sharded else ((count, *image), None)
        shape, names = (spec.images, *image), ("image", *axes)
        options |= {"shape": shape, "chunks": chunks, "shards": shards, "dimension_names": names}
        group.create_array(name, **options)

    values: dict[str, Any] = {"dtype": spec.dtype, "fill_value": np.nan}
    for name, shape in spec.layers.items():
        axes = {f"patch_{name}": shape.patches, f"dim_{name}": shape.dim}
        packed = zstd if spec.compressor == "zstd" else None
        declare(f"tokens_{name}", axes, sharded=True, compressors=packed, filters=None, **values)
        axes = {f"prefix_token_{name}": len(shape.prefix), f"dim_{name}": shape.dim}
        declare(f"prefix_{name}", axes, sharded=False, compressors=None, **values)
    size = spec.backbone.preprocess.size
    axes = {"y": size, "x": size}
    declare("mask", axes, sharded=True, compressors=zstd, dtype="uint8", fill_value=0)
    for path in root.rglob("zarr.json"):
        write_bytes(path, path.read_bytes())  # written again: Zarr syncs nothing


def write_small(root: Path, name: str, values: np.ndarray, dimension: str) -> None:
    """Write a small array as one chunk, replacing one of the same name."""
    group = zarr.open_group(root, mode="r+")
    is_text = values.dtype.kind in "OUT"
    # An array of zeros equals its fill value: without this Zarr would leave its chunk out.
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype=str if is_text else values.dtype,
        dimension_names=(dimension,),
        overwrite=True,
        config={"write_empty_chunks": True},
    )
    array[...] = values.astype(object) if is_text else values
