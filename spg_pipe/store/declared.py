"""What a reader requires of a store's arrays before Zarr reads one, and of small arrays' values.

Shapes, chunks and codecs follow from the store's attributes (docs/store.md): any other could make
Zarr allocate what nobody has, or read other numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from spg_pipe.datasets.walk import inside
from spg_pipe.store.format import IMAGE_TABLE, StoreSpec

Json: TypeAlias = "dict[str, Json] | Sequence[Json] | str | int"
_ZSTD: Json = {"name": "zstd"}


def declared(spec: StoreSpec) -> dict[str, Json]:
    """Array → what its zarr.json must hold; Zarr may add to it."""
    images, shard, size = spec.images, spec.shard_images, spec.backbone.preprocess.size
    packed = [_ZSTD] if spec.compressor == "zstd" else []
    arrays = {"mask": _declared("uint8", (images, size, size), shard, [_ZSTD], sharded=True)}
    for name, shape in spec.layers.items():
        tokens = (images, shape.patches, shape.dim)
        prefix = (images, len(shape.prefix), shape.dim)
        arrays |= {
            f"tokens_{name}": _declared(spec.dtype, tokens, shard, packed, sharded=True),
            f"prefix_{name}": _declared(spec.dtype, prefix, shard, []),
            f"mean_{name}": _declared("float64", (shape.dim,), shape.dim, [_ZSTD]),
            f"std_{name}": _declared("float64", (shape.dim,), shape.dim, [_ZSTD]),
            f"checksum_{name}": _declared("uint32", (images,), images, [_ZSTD]),
        }
    for name, dtype in {"lost_regions": "uint32", **IMAGE_TABLE}.items():
        of_zarr = "string" if dtype == "object" else dtype
        arrays[name] = _declared(of_zarr, (images,), images, [_ZSTD])
    return arrays


def _declared(
    dtype: str, shape: tuple[int, ...], rows: int, packed: Sequence[Json], *, sharded: bool = False
) -> Json:
    """What zarr.json says of an array whose files hold so many rows each."""
    little: Json = {"name": "bytes", "configuration": {"endian": "little"}}
    of_dtype: dict[str, Json] = {"string": {"name": "vlen-utf8"}, "uint8": {"name": "bytes"}}
    codecs: list[Json] = [of_dtype.get(dtype, little), *packed]
    if sharded:
        inner: Json = {
            "chunk_shape": (1, *shape[1:]),
            "codecs": codecs,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    chunks: Json = {"chunk_shape": (rows, *shape[1:])}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": chunks},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
    }


def holds(found: object, expected: Json) -> bool:
    """Whether JSON is as expected; its objects may have more keys."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            key in found and holds(found[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list | tuple):
        if not isinstance(found, list) or len(found) != len(expected):
            return False
        return all(holds(*pair) for pair in zip(found, expected, strict=True))
    return type(found) is type(expected) and found == expected


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
