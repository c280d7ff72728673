"""Names, shapes and attributes of a store; docs/store.md is normative."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.errors import SpgError

SCHEMA_VERSION = 2
SHARD_INDEX = "shards.json"
ZSTD_LEVEL = 3
"""Of masks, which shrink a hundredfold, and of tokens where `compressor` is zstd."""


@dataclass(frozen=True)
class LayerShape:
    """What one layer gives for every image."""

    grid: tuple[int, int]
    """Patch rows and columns (h, w); patches are stored row-major."""
    dim: int
    """Token width D."""
    prefix: tuple[str, ...]
    """Names of the prefix tokens: ``cls``, or ``mean`` or ``zeros`` in its place."""

    @property
    def patches(self) -> int:
        """N = h·w."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class StoreSpec:
    """What determines a store's content, and so its fingerprint."""

    dataset: str
    split: str
    manifest: str
    """The manifest's fingerprint: relative paths and content hashes."""
    images: int
    backbone: BackboneSpec
    layers: dict[str, LayerShape]
    shard_images: int
    batch_images: int
    dtype: str
    """`float16` or `float32`, of tokens and prefix tokens."""
    exif: bool
    compressor: Literal["none", "zstd"] = "none"
    """Of the tokens. `none` puts every image at a fixed offset; `zstd` is for archives."""

    def content(self) -> dict[str, Any]:
        """Plain values: never time, host, absolute path or library version."""
        return {
            "schema": SCHEMA_VERSION,
            "dataset": self.dataset,
            "split": self.split,
            "manifest": self.manifest,
            "images": self.images,
            "backbone": self.backbone.to_dict(),
            "layers": {
                name: {"grid": list(s.grid), "dim": s.dim, "prefix": list(s.prefix)}
                for name, s in self.layers.items()
            },
            "shard_images": self.shard_images,
            "batch_images": self.batch_images,
            "dtype": self.dtype,
            "exif": self.exif,
            "compressor": self.compressor,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over `content`, without the labels that say the same in words.

        The weights count by their hash, not by the name of the file that they came from.
        """
        content = self.content()
        labels = ("alias", "weights", "licence")
        backbone = {k: v for k, v in content["backbone"].items() if k not in labels}
        return fingerprint(content | {"backbone": backbone})

    @property
    def shards(self) -> int:
        """Number of shards a layer."""
        return -(-self.images // self.shard_images)

    def shard_rows(self, shard: int) -> range:
        """Image rows of a shard; the last may be short."""
        start = shard * self.shard_images
        return range(start, min(start + self.shard_images, self.images))

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> "StoreSpec":
        """The inverse of `content`."""
        return cls(
            dataset=content["dataset"],
            split=content["split"],
            manifest=content["manifest"],
            images=content["images"],
            backbone=BackboneSpec.from_dict(content["backbone"]),
            layers={
                name: LayerShape(tuple(s["grid"]), s["dim"], tuple(s["prefix"]))
                for name, s in content["layers"].items()
            },
            shard_images=content["shard_images"],
            batch_images=content["batch_images"],
            dtype=content["dtype"],
            exif=content["exif"],
            compressor=content["compressor"],
        )

    def encode_tokens(self, image: memoryview) -> bytes | memoryview:
        """The bytes of one image's tokens as an inner chunk of a shard."""
        return image if self.compressor == "none" else _zstd().encode(image)

    def decode_tokens(self, chunk: bytes) -> bytes:
        """The inverse of `encode_tokens`."""
        return chunk if self.compressor == "none" else bytes(_zstd().decode(chunk))


def encode_mask(mask: np.ndarray) -> bytes:
    """One image's mask (S, S) uint8 as an inner chunk of a shard."""
    return bytes(_zstd().encode(np.ascontiguousarray(mask)))


def decode_mask(encoded: bytes, size: int) -> np.ndarray:
    """The inverse of `encode_mask`."""
    return np.frombuffer(_zstd().decode(encoded), np.uint8).reshape(size, size)


def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=ZSTD_LEVEL, checksum=False)


def create_arrays(root: Path, spec: StoreSpec, attributes: dict[str, Any]) -> None:
    """Write the metadata of the group and of the large arrays; no data yet.

    Tokens are sharded by `shard_images` with one image an inner chunk and no compressor, so that
    an image's bytes lie at a fixed offset of its shard (docs/store.md).
    """
    import zarr
    from zarr.codecs import ZstdCodec

    group = zarr.create_group(root, attributes=attributes | {"complete": False})
    for name, shape in spec.layers.items():
        group.create_array(
            f"tokens_{name}",
            shape=(spec.images, shape.patches, shape.dim),
            chunks=(1, shape.patches, shape.dim),
            shards=(spec.shard_images, shape.patches, shape.dim),
            dtype=spec.dtype,
            compressors=ZstdCodec(level=ZSTD_LEVEL) if spec.compressor == "zstd" else None,
            filters=None,
            fill_value=np.nan,
            dimension_names=("image", f"patch_{name}", f"dim_{name}"),
        )
        group.create_array(
            f"prefix_{name}",
            shape=(spec.images, len(shape.prefix), shape.dim),
            chunks=(spec.shard_images, len(shape.prefix), shape.dim),
            dtype=spec.dtype,
            compressors=None,
            fill_value=np.nan,
            dimension_names=("image", f"prefix_token_{name}", f"dim_{name}"),
        )
    size = spec.backbone.preprocess.size
    group.create_array(
        "mask",
        shape=(spec.images, size, size),
        chunks=(1, size, size),
        shards=(spec.shard_images, size, size),
        dtype="uint8",
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        fill_value=0,
        dimension_names=("image", "y", "x"),
    )


def write_small(root: Path, name: str, values: np.ndarray, dimensions: Iterable[str]) -> None:
    """Write a small array as one chunk, replacing one of the same name."""
    import zarr

    group = zarr.open_group(root, mode="r+")
    is_text = values.dtype.kind in "OUT"
    # An array of zeros equals its fill value: without this Zarr would leave its chunk out.
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype=str if is_text else values.dtype,
        dimension_names=tuple(dimensions),
        overwrite=True,
        config={"write_empty_chunks": True},
    )
    array[...] = values.astype(object) if is_text else values


def read_attributes(root: Path) -> dict[str, Any] | None:
    """The group's attributes, or None where there is no readable group."""
    try:
        return dict(json.loads((root / "zarr.json").read_text())["attributes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


DAMAGED_METADATA = (
    "its zarr.json is missing or damaged: write it anew with `spg-pipe extract --replace` and the "
    "same options."
)


def is_damaged_store(root: Path) -> bool:
    """Whether a folder holds a store's data without its metadata."""
    return (
        read_attributes(root) is None
        and (root / SHARD_INDEX).is_file()
        and any(root.glob("tokens_*"))
    )


OPEN_AGAIN = "Open it again, or run the command again, to read what is there now."


def require_unchanged(root: Path, spec: StoreSpec) -> None:
    """Refuse a store that was replaced since it was opened; called after its files are.

    Raises
    ------
    SpgError
    """
    found = read_attributes(root) or {}
    if found.get("fingerprint") != spec.fingerprint or not found.get("complete"):
        raise SpgError(
            f"{root} was replaced, or is being replaced, since it was opened. {OPEN_AGAIN}"
        )


def shard_tokens(root: Path, spec: StoreSpec, layer: str, shard: int) -> np.ndarray:
    """All tokens of one shard, (n, N, D), read by Zarr itself."""
    import zarr

    rows = spec.shard_rows(shard)
    array: Any = zarr.open_array(root / f"tokens_{layer}", mode="r")
    return np.asarray(array[rows.start : rows.stop])


def array_names(spec: StoreSpec) -> list[str]:
    """The arrays that `create_arrays` declares."""
    return [f"{kind}_{name}" for name in spec.layers for kind in ("tokens", "prefix")] + ["mask"]


def arrays_declared(root: Path, spec: StoreSpec) -> bool:
    """Whether `create_arrays` came to its end; a kill may leave some arrays undeclared."""
    try:
        for name in array_names(spec):
            json.loads((root / name / "zarr.json").read_text())
    except (OSError, ValueError):
        return False
    return True
