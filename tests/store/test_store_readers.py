"""One store, three ways to read it: raw, through zarr-python, behind a URL; all the same bits."""

from __future__ import annotations

import shutil
from functools import partial

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TinyBackbone, extracted, files

from spg_pipe.errors import SpgError
from spg_pipe.store import tokens
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches
from spg_pipe.store.verify import require_intact, verify


@pytest.fixture(scope="module")
def plain(tiny_store: FeatureStore) -> FeatureStore:
    return FeatureStore(tiny_store.path, plain=True)


@given(images=st.lists(st.integers(0, 15), max_size=12))
def test_the_raw_reader_gives_the_bits_of_zarr(tiny_store, plain, images):
    assert (tiny_store.raw, plain.raw) == (True, False)
    rows = np.array(images, dtype=np.int64)
    for layer in tiny_store.layers:
        assert np.array_equal(tiny_store.tokens(layer, rows), plain.tokens(layer, rows))


def test_tokens_are_read_into_memory_with_gaps(tiny_store: FeatureStore) -> None:
    rows = np.array([3, 4, 5, 0])
    room = np.full((4, 17, 12), 7, np.float16)
    tiny_store.tokens("1", rows, out=room[:, 1:])
    assert np.array_equal(room[:, 1:], tiny_store.tokens("1", rows))
    assert (room[:, 0] == 7).all()


def test_many_images_are_read_by_several_threads(tiny_store, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 16, 200)
    expected = tiny_store.tokens("1", rows)
    monkeypatch.setattr(tokens.RawTokens, "_alone_bytes", 1000)
    assert np.array_equal(FeatureStore(tiny_store.path).tokens("1", rows), expected)


def test_a_shard_that_shrank_after_opening_is_an_error(tiny_store, tmp_path):
    store = FeatureStore(shutil.copytree(tiny_store.path, tmp_path / "copy.zarr"))
    shard = store.path / "tokens_1/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(SpgError, match=r"tokens_1/c/1/0/0 ends at byte 500.*--replace"):
        store.tokens("1", np.arange(16))
    shard.unlink()
    gone = FeatureStore(store.path, check_files=False)
    with pytest.raises(SpgError, match=r"tokens_1/c/1/0/0 cannot be read.*--replace"):
        gone.tokens("1", np.arange(16))


def test_a_store_behind_a_url_is_read_like_a_local_one(tiny_store: FeatureStore) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in files(tiny_store.path).items():
        memory.pipe_file(f"/bucket/tiny.zarr/{name}", content)
    remote = FeatureStore("memory://bucket/tiny.zarr")
    rows = np.array([9, 2, 3])
    assert np.array_equal(remote.tokens("2", rows), tiny_store.tokens("2", rows))
    assert np.array_equal(remote.masks(rows), tiny_store.masks(rows))
    assert remote.table.equals(tiny_store.table)
    require_intact(remote.path, verify(remote.path))
    memory.rm("/bucket/tiny.zarr/tokens_2/c/1/0/0")
    with pytest.raises(SpgError, match=r"tokens_2/c/1/0/0 .*is missing"):
        FeatureStore("memory://bucket/tiny.zarr")


def test_a_compressed_store_holds_the_same_tokens(tiny_store, tiny_manifest, tmp_path):
    store = extracted(tiny_manifest, tmp_path / "zstd.zarr", compressor="zstd")
    rows = np.array([15, 0, 7, 8])
    for layer in store.layers:
        assert np.array_equal(store.tokens(layer, rows), tiny_store.tokens(layer, rows))
        checksum = f"checksum_{layer}"
        assert np.array_equal(store.array(checksum), tiny_store.array(checksum))
    assert store.fingerprint != tiny_store.fingerprint
    shard = store.path / "tokens_1/c/1/0/0"
    damaged = bytearray(shard.read_bytes())
    damaged[40] ^= 8
    shard.write_bytes(damaged)
    assert "image 6 " in " ".join(verify(store.path))


@pytest.mark.parametrize("plain", [False, True])
def test_a_store_that_is_replaced_while_it_is_open_is_refused(tiny_manifest, tmp_path, plain):
    path = extracted(tiny_manifest, tmp_path / "s.zarr").path
    used, fresh = FeatureStore(path, plain=plain), FeatureStore(path, plain=plain)
    rows = np.arange(16)
    used.tokens("1", rows)
    stream = token_batches(TokenSource(used, "1"), seed=1, epoch=0, batch_tokens=16)
    next(stream)
    other = TinyBackbone(scale=2.0, weights_sha256="1" * 64)
    extracted(tiny_manifest, path, backbone=other, replace=True)
    for store in (used, fresh):
        for read in (store.tokens, store.cls):
            with pytest.raises(SpgError, match=r"was replaced.*again"):
                read("2", rows)
        for array in ("label", "mean_1"):
            with pytest.raises(SpgError, match=r"was replaced.*again"):
                store.array(array)
        with pytest.raises(SpgError, match=r"was replaced.*again"):
            store.masks(rows)
    with pytest.raises(SpgError, match=r"was replaced.*again"):
        used.tokens("1", rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([-1], "has images 0 to 15; asked for -1"),
        ([3, 16], "has images 0 to 15; asked for 16"),
        ([True, False], "np.flatnonzero"),
        ([0.0], "expected integers"),
        ([[1]], r"shape \(1, 1\)"),
    ],
)
def test_rows_that_are_not_there_are_refused(tiny_store, plain, rows, message):
    for store in (tiny_store, plain):
        for read in (store.masks, partial(store.tokens, "1"), partial(store.cls, "1")):
            with pytest.raises(SpgError, match=message):
                read(np.array(rows))
