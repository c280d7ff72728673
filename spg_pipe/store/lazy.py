"""A store as Dask arrays or as an xarray Dataset: checked first, read when it is computed."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.store.format import StoreSpec, large_arrays, small_arrays
from spg_pipe.store.reader import FeatureStore

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

_CHUNK_BYTES = 128 * 1000**2
"""Largest default chunk: a task for each is worth its while, and several fit in memory at once."""


def open_dask(path: Path | str, *, chunk_images: int | None = None) -> dict[str, "da.Array"]:
    """Every array of a store as a Dask array, by its name in the store.

    Tokens of a local, uncompressed store are read at their offsets like `FeatureStore.tokens`: two
    to three times as fast as through `dask.array.from_zarr`, because zarr-python decodes a shard
    image by image (320 images of 784 × 1024 float16 in the page cache, 2 cores, chunks of 16 and 64
    images). Every other array, and every other store, is read through zarr-python. A slice of
    images reads these images alone; scattered rows read whole chunks, so take them with
    `FeatureStore.tokens`. An `SpgError` if the store is missing, unfinished, changed or incomplete,
    as `FeatureStore` says, or if `chunk_images` is not positive.

    Parameters
    ----------
    path : Path or str
        A finished store's folder, or a URL that fsspec knows.
    chunk_images : int, optional
        Images a chunk. Without it a chunk is a shard or, where a shard has more than 128 MB, one
        of the nearly equal parts of a shard that have not; the same for all arrays.

    Returns
    -------
    dict of dask.array.Array
        `tokens_<layer>` (images, N, D) and the other names of docs/store.md, in the store's
        dtypes; arrays with a value an image or a dimension are one chunk.
    """
    import dask.array as da
    from dask.base import tokenize

    if chunk_images is not None and chunk_images < 1:
        raise SpgError(f"chunk_images is {chunk_images}, expected a number of images from 1 on.")
    store = FeatureStore(path)
    images = chunk_images or _image_chunks(store.spec)
    group, large = store.group, large_arrays(store.spec)
    lazy = {}
    for name in (*large, *small_arrays(store.spec)):
        array = group[name]
        kind, _, layer = name.partition("_")
        source = store.token_array(layer) if kind == "tokens" else array
        chunks = (images, *array.shape[1:]) if name in large else array.shape
        # The fingerprint stands for the content: equal names mean equal numbers to Dask.
        label = f"{name}-{tokenize(str(store.path), store.fingerprint, chunks)}"
        meta = np.empty((0,) * array.ndim, array.dtype)
        lazy[name] = da.from_array(source, chunks=chunks, name=label, meta=meta)
    return lazy


def open_xarray(path: Path | str, *, chunk_images: int | None = None) -> "xr.Dataset":
    """A store as an xarray Dataset: what `xarray.open_zarr` gives, checked and in larger chunks.

    An `SpgError` as of `open_dask`.

    Parameters
    ----------
    path, chunk_images
        As in `open_dask`, which also says how the arrays are read.

    Returns
    -------
    xarray.Dataset
        Variables with the dimensions of docs/store.md and the store's attributes. Tokens, prefix
        tokens and masks are Dask arrays; the small arrays are read at once.
    """
    import xarray as xr

    store = FeatureStore(path)
    group, large = store.group, large_arrays(store.spec)
    variables = {
        name: (group[name].metadata.dimension_names, lazy if name in large else store.array(name))
        for name, lazy in open_dask(path, chunk_images=chunk_images).items()
    }
    return xr.Dataset(variables, attrs=store.spec.attributes())


def _image_chunks(spec: StoreSpec) -> tuple[int, ...]:
    """Images of every chunk, in order: none crosses a shard's border."""
    widest = max(spec.image_bytes(layer) for layer in spec.layers)
    most = max(1, _CHUNK_BYTES // max(widest, spec.backbone.preprocess.size**2))
    size = -(-spec.shard_images // -(-spec.shard_images // most))
    return tuple(
        min(size, len(rows) - start)
        for rows in map(spec.shard_rows, range(spec.shards))
        for start in range(0, len(rows), size)
    )
