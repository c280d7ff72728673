"""A store never lies while it is read: one changed bit of any file is an error, no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import extracted, files, flip

from spg_pipe import open_dask
from spg_pipe.errors import DamagedError, SpgError
from spg_pipe.store.reader import FeatureStore

DATA = ["tokens_1/c/0/0/0", "tokens_2/c/1/0/0", "prefix_1/c/1/0/0", "mask/c/0/0/0", "label/c/0"]
DATA += ["mask_state/c/0", "path/c/0", "mean_2/c/0", "checksum_1/c/0", "lost_regions/c/0"]


def by_rows(place: Path) -> None:
    store = FeatureStore(place)
    rows = np.arange(len(store))
    for layer in store.layers:
        store.tokens(layer, rows[::-1])
        store.cls(layer, rows)
        store.array(f"mean_{layer}")
    store.masks(rows)
    assert len(store.table) == len(store)
    store.array("lost_regions")


def by_zarr(place: Path) -> None:
    store = FeatureStore(place, plain=True)
    for layer in store.layers:
        store.tokens(layer, np.array([3, 4, 9, 10, 15, 0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 14]))
    by_rows(place)


def by_dask(place: Path) -> None:
    for array in open_dask(place, chunk_images=3).values():
        array.compute(scheduler="synchronous")


@pytest.mark.parametrize("read", [by_rows, by_zarr, by_dask])
@pytest.mark.parametrize("compressor", ["none", "zstd"])
def test_a_changed_bit_is_an_error_when_it_is_first_read(
    tiny_manifest, tmp_path, read, compressor
) -> None:
    place = extracted(tiny_manifest, tmp_path / "s.zarr", compressor=compressor).path
    read(place)
    whole = files(place)
    for name in DATA:
        for byte in (0, len(whole[name]) // 2):
            flip(place / name, byte)
            with pytest.raises(DamagedError, match=r"crc32c|Zstd"):
                read(place)
            (place / name).write_bytes(whole[name])
    read(place)


@pytest.mark.parametrize("name", ["zarr.json", "shards.json", "tokens_1/zarr.json"])
def test_a_changed_bit_of_the_metadata_is_an_error(tiny_store, copy_of, name) -> None:
    place = copy_of(tiny_store.path)
    content = (place / name).read_bytes()
    for byte in range(0, len(content), max(1, len(content) // 80)):
        flip(place / name, byte)
        with pytest.raises(SpgError, match=r"again with|spg-pipe extract"):
            FeatureStore(place)
        (place / name).write_bytes(content)


def test_what_was_read_once_is_not_looked_at_again(tiny_store, copy_of) -> None:
    place = copy_of(tiny_store.path)
    store = FeatureStore(place)
    tokens = store.tokens("1", np.array([0]))
    flip(place / "tokens_1/c/0/0/0", 4)
    assert not np.array_equal(store.tokens("1", np.array([0])), tokens)
