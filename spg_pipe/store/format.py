"""What a store is on the disk: its attributes and its arrays; docs/store.md is normative."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from pydantic import Field, model_validator
from zarr.codecs import ZstdCodec

from spg_pipe.artefacts.files import fingerprint, write_bytes
from spg_pipe.artefacts.reading import made_anew
from spg_pipe.artefacts.record import LARGEST_SIDE, Count, LayerName, Name, Record, Size, inside
from spg_pipe.backbones.spec import LABELS, BackboneSpec
from spg_pipe.datasets.manifest import Skipped

SCHEMA_VERSION: Final = 2
SHARD_INDEX = "shards.json"
ZSTD_LEVEL = 3
"""Of masks, which shrink a hundredfold, and of tokens where `compressor` is zstd."""
COMMAND = "spg-pipe extract --replace"
_MOST_VALUES = 64 * LARGEST_SIDE**2
"""Of a shard's masks, and of an image's tokens in a layer."""


def remade(place: Path | str) -> str:
    """What to do with a damaged store, in a sentence: "To mend it, …"."""
    same = f"make it again with `{COMMAND}` and the same options (such as --split and --out)"
    return made_anew(place, same)


class LayerShape(Record):
    """What one layer gives for every image."""

    grid: tuple[Size, Size]
    """Patch rows and columns (h, w); patches are stored row-major."""
    dim: Annotated[int, Field(ge=1, le=2**20)]
    """Token width D."""
    prefix: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    """Names of the prefix tokens: ``cls``, or ``mean`` or ``zeros`` in its place."""

    @property
    def patches(self) -> int:
        """N = h·w."""
        return self.grid[0] * self.grid[1]


class Selection(Record):
    """The part of a dataset that options chose."""

    categories: tuple[str, ...] = ()
    """Those alone; empty: all."""
    limit: Count | None = None
    """Images, of …"""
    of: Count | None = None
    """… so many."""

    @classmethod
    def of_manifest(cls, selection: Mapping[str, object]) -> "Selection | None":
        """`Manifest.selection`; None for a whole dataset."""
        return cls.model_validate(selection) if selection else None


class StoreSpec(Record):
    """The attributes of a store: what determines its content, then what is said beside it."""

    BESIDE: ClassVar[frozenset[str]] = frozenset(
        {"fingerprint", "licences", "notes", "skipped", "selection", "sources", "layout"}
        | {"versions", "computed", "complete", "index_sha256", "seal"}
    )
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"white", "computed", "index_sha256", "seal"})

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
    white: Count | None = None
    """As in the manifest."""
    compressor: Literal["none", "zstd"] = "none"
    """Of the tokens. `none` puts every image at a fixed offset; `zstd` is for archives."""
    fingerprint: Name = ""
    licences: tuple[str, ...]
    """Of the data and of the weights."""
    notes: tuple[str, ...]
    """What a person should know of the images."""
    skipped: tuple[Skipped, ...]
    """Images that were left out because they could not be used."""
    selection: dict[str, object]
    """How options chose a part of the dataset (`Manifest.selection`); empty for all of it."""
    sources: dict[str, str]
    """Of a synthetic set, path → `source_id` of the normal image behind it; else empty."""
    layout: Name
    versions: dict[Name, Name]
    computed: Name | None = None
    """How the network computed the tokens, where its precision left a choice."""
    complete: bool = False
    """Set last, once every file is in its place."""
    index_sha256: Name | None = None
    """SHA-256 of shards.json, which holds the checksums of all other files."""
    seal: Name | None = None
    """Of zarr.json (`seal_of`); None in a store of a version that wrote neither."""

    @model_validator(mode="after")
    def _agree(self) -> "StoreSpec":
        self.backbone.require_layers(self.layers)
        Selection.of_manifest(self.selection)
        side, shapes = self.backbone.preprocess.size, self.layers.values()
        tokens = max(shape.patches * shape.dim for shape in shapes)
        sides = max(max(shape.grid) for shape in shapes)
        if sides > side or max(tokens, self.shard_images * side**2) > _MOST_VALUES:
            raise ValueError("its grids, widths, image size or shards are larger than can be")
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


def seal_of(metadata: Mapping[str, Any]) -> str:
    """Fingerprint of a group's zarr.json, its attributes and arrays, without the seal itself."""
    attributes = {k: v for k, v in metadata["attributes"].items() if k != "seal"}
    return fingerprint({**metadata, "attributes": attributes})


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


class ArrayForm(NamedTuple):
    """What an array of a store is."""

    axes: dict[str, int]
    """Dimension → length."""
    dtype: str
    rows: int
    """Of the first axis in one file."""
    sharded: bool = False
    """A file is a shard of inner chunks of one row, not a chunk."""

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
        """Shape, (inner) chunks and shards as Zarr has them."""
        length, *image = self.axes.values()
        file, row = (self.rows, *image), (1, *image)
        return (length, *image), *((row, file) if self.sharded else (file, None))

    def fits(self, array: Any) -> bool:
        """Whether a Zarr array is one: any other could allocate what nobody has."""
        kinds = "OT" if self.dtype == "object" else np.dtype(self.dtype).kind
        same = array.dtype.kind in kinds and (kinds == "OT" or array.dtype == self.dtype)
        return same and (array.shape, array.chunks, array.shards) == self.layout


def array_forms(spec: StoreSpec) -> dict[str, ArrayForm]:
    """Every array of a store; its attributes alone determine them (docs/store.md)."""
    count, size, image = spec.shard_images, spec.backbone.preprocess.size, {"image": spec.images}
    forms = {}
    for name, shape in spec.layers.items():
        patches, prefix = (
            {f"patch_{name}": shape.patches},
            {f"prefix_token_{name}": len(shape.prefix)},
        )
        dim = {f"dim_{name}": shape.dim}
        forms[f"tokens_{name}"] = ArrayForm(image | patches | dim, spec.dtype, count, sharded=True)
        forms[f"prefix_{name}"] = ArrayForm(image | prefix | dim, spec.dtype, count)
        forms[f"mean_{name}"] = forms[f"std_{name}"] = ArrayForm(dim, "float64", shape.dim)
        forms[f"checksum_{name}"] = ArrayForm(image, "uint32", spec.images)
    forms["mask"] = ArrayForm(image | {"y": size, "x": size}, "uint8", count, sharded=True)
    table = {"lost_regions": "uint32", **IMAGE_TABLE}
    return forms | {name: ArrayForm(image, dtype, spec.images) for name, dtype in table.items()}


def create_arrays(root: Path, spec: StoreSpec) -> None:
    """Write the metadata of the group and of the large arrays; no data yet.

    Tokens are sharded by `shard_images` with one image an inner chunk and no compressor, so that
    an image's bytes lie at a fixed offset of its shard (docs/store.md).
    """
    group, forms = zarr.create_group(root, attributes=spec.attributes()), array_forms(spec)
    zstd = ZstdCodec(level=ZSTD_LEVEL)
    packed = {"mask": zstd, "tokens": zstd if spec.compressor == "zstd" else None}
    for name in large_arrays(spec):
        form, compressors = forms[name], packed.get(name.partition("_")[0])
        declared: Any = dict(zip(("shape", "chunks", "shards"), form.layout, strict=True))
        declared |= {"dtype": form.dtype, "dimension_names": tuple(form.axes), "filters": None}
        fill = 0 if name == "mask" else np.nan
        group.create_array(name, fill_value=fill, compressors=compressors, **declared)
    for path in root.rglob("zarr.json"):
        write_bytes(path, path.read_bytes())  # written again: Zarr syncs nothing


_POSSIBLE: dict[str, Callable[[np.ndarray], Any]] = {
    "label": lambda values: np.isin(values, (0, 1, 255)),
    "mask_state": lambda values: values <= 2,
    "path": lambda values: [inside(path) == path for path in values.tolist()],
    **dict.fromkeys(("height", "width"), lambda values: values >= 1),
    **dict.fromkeys(("mean", "std", "prefix"), np.isfinite),
}
"""Array, or kind of arrays → which of its values an extract may have written."""


def require_values(name: str, values: np.ndarray) -> None:
    """ValueError where a small array, or prefix tokens, hold what no extract writes."""
    possible = _POSSIBLE.get(name) or _POSSIBLE.get(name.partition("_")[0])
    if possible is not None and not np.all(possible(values)):
        raise ValueError("it holds a value that no extract writes there")


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
