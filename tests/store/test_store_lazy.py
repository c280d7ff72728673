"""A store as Dask arrays and as an xarray Dataset: the reader's bits, checked, in large chunks."""

from __future__ import annotations

import pickle

import dask.array as da
import fsspec
import numpy as np
import pytest
import xarray as xr
from tiny import extracted, files

from spg_pipe import open_dask, open_xarray
from spg_pipe.errors import SpgError
from spg_pipe.store import lazy
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.tokens import RawTokens

SELECTIONS = [
    np.s_[:],
    np.s_[5],
    np.s_[-1],
    np.s_[4:9],
    np.s_[13:2:-4],
    np.s_[3:3],
    np.s_[7, :, 2],
    np.s_[2:12:3, 1:3, -5:],
    np.s_[..., ::2],
    np.s_[[15, 0, 7, 7]],
    np.s_[2, [3, 0], 1:4],
    np.s_[:, None, 1],
]


@pytest.mark.parametrize("chunk_images", [None, 1, 4, 16])
def test_dask_gives_the_bits_of_our_reader(tiny_store, chunk_images):
    arrays = open_dask(tiny_store.path, chunk_images=chunk_images)
    for layer in tiny_store.layers:
        ours = tiny_store.tokens(layer, np.arange(16))
        lazily = arrays[f"tokens_{layer}"]
        assert lazily.dtype == ours.dtype
        for selection in SELECTIONS:
            found = lazily[selection]
            assert found.shape == ours[selection].shape, selection
            assert np.array_equal(found.compute(), ours[selection]), selection
        prefix = arrays[f"prefix_{layer}"].compute()
        assert np.array_equal(prefix[:, 0], tiny_store.cls(layer, np.arange(16)))
    assert np.array_equal(arrays["mask"].compute(), tiny_store.masks(np.arange(16)))
    assert arrays["path"].compute().tolist() == tiny_store.table["path"].tolist()


def test_xarray_gives_what_open_zarr_gives(tiny_store: FeatureStore) -> None:
    ours = open_xarray(tiny_store.path)
    xr.testing.assert_identical(ours.compute(), xr.open_zarr(tiny_store.path).compute())
    assert isinstance(ours["tokens_2"].data, da.Array)
    assert isinstance(ours["mask"].data, da.Array)
    assert isinstance(ours["label"].data, np.ndarray)
    anomalous = ours.tokens_1[ours.label == 1]
    rows = np.flatnonzero(tiny_store.table["label"] == 1)
    assert np.array_equal(anomalous.values, tiny_store.tokens("1", rows))


def test_a_chunk_is_a_shard_or_an_even_part_of_a_large_one(tiny_store, monkeypatch):
    def of_images() -> tuple[int, ...]:
        found = open_xarray(tiny_store.path).chunks["image"]  # fails unless all arrays agree
        assert {array.chunks[0] for array in open_dask(tiny_store.path).values()} == {
            found, (16,), (12,), (8,)
        }  # fmt: skip
        return found

    assert of_images() == (6, 6, 4)
    image_bytes = 32 * 32  # a mask has more than the tokens of either layer
    monkeypatch.setattr(lazy, "_CHUNK_BYTES", 4 * image_bytes)
    assert of_images() == (3, 3, 3, 3, 3, 1)  # 6 in two: never more than 4, never over a border
    monkeypatch.setattr(lazy, "_CHUNK_BYTES", 1)
    assert of_images() == (1,) * 16


def test_default_chunks_hold_64_to_128_megabytes_of_the_largest_layer(tiny_store):
    wide = tiny_store.spec.layers["1"].model_copy(update={"grid": (28, 28), "dim": 1024})
    changes = {"layers": {"1": wide, "2": wide}, "images": 1000, "shard_images": 256}
    chunks = lazy._image_chunks(tiny_store.spec.model_copy(update=changes))
    assert (sum(chunks), max(chunks)) == (1000, 64)  # 256 in four: 103 MB


def test_chunks_as_the_user_wants_them(tiny_store: FeatureStore) -> None:
    assert open_xarray(tiny_store.path, chunk_images=5).chunks["image"] == (5, 5, 5, 1)
    with pytest.raises(SpgError, match="chunk_images is 0, expected"):
        open_dask(tiny_store.path, chunk_images=0)


def test_one_image_is_read_alone(tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    read = RawTokens.read

    def watched(self: RawTokens, images: np.ndarray, out: np.ndarray) -> None:
        asked.append(images.tolist())
        read(self, images, out)

    monkeypatch.setattr(RawTokens, "read", watched)
    open_dask(tiny_store.path)["tokens_1"][7, 2:].compute()
    open_xarray(tiny_store.path).tokens_1.isel(image=slice(13, 15)).compute()
    assert asked == [[7], [13, 14]]


def test_tokens_travel_to_another_process_without_open_files(tiny_store: FeatureStore) -> None:
    tokens = open_dask(tiny_store.path)["tokens_1"]
    tokens[0].compute()
    sent = pickle.loads(pickle.dumps(tokens))  # noqa: S301
    assert np.array_equal(sent[9].compute(), tiny_store.tokens("1", np.array([9]))[0])
    reader = tiny_store.token_array("1")
    assert reader[0, :].shape == (16, 12)
    assert reader._files
    assert not pickle.loads(pickle.dumps(reader))._files  # noqa: S301


def test_names_in_dasks_graph_follow_the_content(tiny_store, tiny_manifest, tmp_path):
    assert open_dask(tiny_store.path)["mask"].name == open_dask(tiny_store.path)["mask"].name
    path = tmp_path / "store.zarr"
    extracted(tiny_manifest, path)
    names = {name: array.name for name, array in open_dask(path).items()}
    assert len(set(names.values())) == len(names)
    extracted(tiny_manifest, path, dtype="float32", replace=True)
    again = open_dask(path)
    assert not {array.name for array in again.values()} & set(names.values())


@pytest.mark.parametrize("opener", [open_dask, open_xarray])
def test_a_store_that_is_not_whole_is_refused_before_anything_is_read(
    tiny_store, copy_of, opener, tmp_path
):
    with pytest.raises(SpgError, match="not a feature store"):
        opener(tmp_path)
    path = copy_of(tiny_store.path)
    (path / "tokens_2/c/1/0/0").unlink()
    with pytest.raises(SpgError, match=r"tokens_2/c/1/0/0 .*is missing"):
        opener(path)
    group = path / "zarr.json"
    group.write_text(group.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(SpgError, match="not finished"):
        opener(path)


def test_a_remote_and_a_compressed_store_give_the_same(tiny_store, tiny_manifest, tmp_path):
    memory = fsspec.filesystem("memory")
    for name, content in files(tiny_store.path).items():
        memory.pipe_file(f"/lazy/tiny.zarr/{name}", content)
    local = open_xarray(tiny_store.path).compute()
    xr.testing.assert_identical(open_xarray("memory://lazy/tiny.zarr").compute(), local)
    packed = extracted(tiny_manifest, tmp_path / "zstd.zarr", compressor="zstd")
    xr.testing.assert_equal(open_xarray(packed.path).compute(), local)
    tokens = open_dask(str(packed.path))["tokens_2"][4:9].compute()
    assert np.array_equal(tokens, tiny_store.tokens("2", np.arange(4, 9)))
