"""The store as memory: the same bits as zarr-python's, mapped for as long as they are used."""

from __future__ import annotations

import mmap
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TinyBackbone, extracted

from spg_pipe.datasets import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.store import mapped as module
from spg_pipe.store.mapped import MappedTokens
from spg_pipe.store.raw import RawTokens
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.recycle import Recycler
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import image_batches, ordered_batches, sources_of, token_batches

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mapping needs Linux")


@given(
    images=st.lists(st.integers(0, 15), max_size=40),
    huge=st.booleans(),
    layer=st.sampled_from(["1", "2"]),
)
def test_mapped_rows_are_the_bits_of_zarr(
    tiny_store: FeatureStore, images: list[int], huge: bool, layer: str
) -> None:
    mapped = tiny_store.mapped(layer, huge=huge)
    assert mapped is not None
    rows, plain = np.array(images, np.int64), FeatureStore(tiny_store.path, plain=True)
    expected = plain.tokens(layer, rows)
    out = np.empty_like(expected)
    mapped.read(rows, out)
    assert np.array_equal(out, expected)
    for run in mapped.runs(rows):
        mapped.fetch(run)
    starts = mapped.starts(rows).tolist()
    assert all(
        np.array_equal(mapped.rows[start : start + image.shape[0]].numpy(), image)
        for start, image in zip(starts, expected, strict=True)
    )


def test_runs_keep_the_order_and_end_at_a_shards_border(tiny_store: FeatureStore) -> None:
    mapped = tiny_store.mapped("1")
    assert mapped is not None
    images = np.array([3, 4, 5, 6, 7, 2, 2, 1, 15, 0])
    runs = mapped.runs(images)
    assert runs == [range(3, 6), range(6, 8), *(range(i, i + 1) for i in (2, 2, 1, 15, 0))]


def test_a_run_is_not_longer_than_its_limit(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = tiny_store.mapped("1")
    assert mapped is not None
    monkeypatch.setattr(module, "_RUN_BYTES", 2 * 16 * 12 * 2)
    assert [len(run) for run in mapped.runs(np.arange(6))] == [2, 2, 2]


@pytest.mark.parametrize("how", ["plain", "copied"])
def test_every_way_of_reading_gives_the_same_batches(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def batches(store: FeatureStore) -> Iterator[torch.Tensor]:
        options = {"seed": 3, "epoch": 1, "window_images": 7}
        for layer in store.layers:
            source = TokenSource(store, layer)
            yield from token_batches(source, batch_tokens=50, **options)
            yield from token_batches(source, batch_images=3, **options)
        for batch in image_batches(sources_of(store), 4, seed=1, epoch=0):
            yield from batch.tokens.values()
        for _, tokens in ordered_batches(sources_of(store), 5):
            yield from tokens.values()

    expected = list(batches(tiny_store))
    if how == "copied":
        monkeypatch.setattr(module.platform, "machine", lambda: "abacus")
        other = FeatureStore(tiny_store.path)
        assert other.mapped("1") is None
        assert isinstance(other._copied["1"], RawTokens)
    else:
        other = FeatureStore(tiny_store.path, plain=True)
        assert other.mapped("1") is None
    found = list(batches(other))
    assert len(found) == len(expected)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("harm", ["shorter", "gone"])
def test_a_shard_that_is_harmed_after_opening_is_an_error_for_streams(
    tiny_store: FeatureStore, tmp_path: Path, harm: str
) -> None:
    store = FeatureStore(shutil.copytree(tiny_store.path, tmp_path / "copy.zarr"))
    batches = token_batches(TokenSource(store, "1"), seed=1, epoch=0, batch_images=16)
    shard = store.path / "tokens_1/c/1/0/0"
    if harm == "shorter":
        # Within the last page, where the missing bytes would read as zeros.
        with shard.open("r+b") as stream:
            stream.truncate(6 * 16 * 12 * 2 - 1)
    else:
        shard.unlink()
    with pytest.raises(SpgError, match=r"tokens_1/c/1/0/0 (ends at byte|cannot be read).*verify"):
        next(batches)


def test_writing_to_mapped_rows_does_not_change_the_store(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_store.path, tmp_path / "copy.zarr"))
    before = (copy / "tokens_1/c/0/0/0").read_bytes()
    mapped = FeatureStore(copy).mapped("1")
    assert mapped is not None
    mapped.rows[:16] = 3
    assert (copy / "tokens_1/c/0/0/0").read_bytes() == before


def test_rows_outlive_their_store(tiny_store: FeatureStore) -> None:
    store = FeatureStore(tiny_store.path)
    mapped = store.mapped("1")
    assert mapped is not None
    view = mapped.rows[:16]
    del store, mapped
    assert np.array_equal(view.numpy(), tiny_store.tokens("1", np.array([0]))[0])


def mapped_bytes(store: FeatureStore) -> int:
    """Resident bytes of this process that are a store's token shards."""
    regions = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    found = [region for region in regions if f"{store.path}/tokens_" in region]
    return sum(int(re.search(r"Rss:\s+(\d+)", region)[1]) * 1024 for region in found)  # type: ignore[index]


def test_only_the_images_in_use_are_this_processs_memory(
    tiny_manifest: Manifest, tmp_path: Path
) -> None:
    # A shard an image: its pages are its own.
    store = extracted(tiny_manifest, tmp_path / "s.zarr", shard_images=1, dtype="float32")
    peaks = []
    for size in (1, 4):
        seen = []
        for batch in TokenSource(store, "1").take(np.split(np.arange(16), 16 // size)):
            assert batch.images()[0].isfinite().all()
            seen.append(mapped_bytes(store))
        assert mapped_bytes(store) == 0
        peaks.append(max(seen))
    assert peaks == [4096, 4 * 4096]


def test_a_closed_stream_maps_nothing(tiny_store: FeatureStore, tmp_path: Path) -> None:
    store = FeatureStore(shutil.copytree(tiny_store.path, tmp_path / "copy.zarr"))
    batches = token_batches(TokenSource(store, "1"), seed=1, epoch=0, batch_tokens=50)
    next(batches)
    assert mapped_bytes(store) > 0
    batches.close()
    assert mapped_bytes(store) == 0


def test_what_is_not_in_memory_is_read_in_the_background(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_likely_resident", lambda *_: False)
    expected = tiny_store.tokens("1", np.arange(16))
    for huge in (True, False):
        mapped = MappedTokens(Path(tiny_store.path), tiny_store.spec, "1", huge=huge)
        out = np.empty_like(expected)
        mapped.read(np.arange(16), out)
        assert np.array_equal(out, expected)


def test_memory_that_nobody_holds_is_used_again() -> None:
    memory = Recycler()
    kept = memory.empty((3, 4), torch.float16)
    dropped = memory.empty((3, 4), torch.float16)
    address = dropped.data_ptr()
    view = kept[1:]
    del kept, dropped
    assert memory.empty((2, 3), torch.float32).data_ptr() == address
    assert memory.empty((3, 4), torch.float16).data_ptr() != view.data_ptr()


def test_batches_that_are_kept_stay_what_they_were(tiny_store: FeatureStore) -> None:
    source = TokenSource(tiny_store, "1")
    kept = list(token_batches(source, seed=1, epoch=0, batch_tokens=50))
    copies = [batch.clone() for batch in token_batches(source, seed=1, epoch=0, batch_tokens=50)]
    assert all(a.equal(b) for a, b in zip(kept, copies, strict=True))


def advice_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the kernel is told from now on."""
    given: list[int] = []
    true = module._advise

    def spy(address: int, length: int, advice: int) -> None:
        given.append(advice)
        true(address, length, advice)

    monkeypatch.setattr(module, "_advise", spy)
    return given


@pytest.mark.parametrize("owner", [True, False])
def test_what_is_not_in_memory_is_asked_for_ahead(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch, owner: bool
) -> None:
    mapped = MappedTokens(Path(tiny_store.path), tiny_store.spec, "1", huge=False)
    given = advice_of(monkeypatch)
    monkeypatch.setattr(module, "_likely_resident", lambda *_: True)
    mapped._may_ask = owner  # to anybody else the kernel says that everything is there
    mapped.announce(range(3))
    assert given == ([] if owner else [mmap.MADV_WILLNEED])
    monkeypatch.setattr(module, "_likely_resident", lambda *_: False)
    mapped.announce(range(3))
    assert given[-1:] == [mmap.MADV_WILLNEED]


def test_huge_pages_are_for_long_runs(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    true = FeatureStore.mapped

    def spy(store: FeatureStore, layer: str, *, huge: bool = True) -> MappedTokens | None:
        seen.append(huge)
        return true(store, layer, huge=huge)

    monkeypatch.setattr(FeatureStore, "mapped", spy)
    monkeypatch.setattr(module, "_HUGE_FROM", 4 * 16 * 12 * 2)
    for images in ([0, 1, 2, 3], [3, 1, 7, 5]):
        tiny_store.tokens("1", np.array(images))
        list(TokenSource(tiny_store, "1").take([np.array(images)]))
    assert seen == [True, True, False, False]


def test_a_stream_gives_dropped_memory_again(tiny_store: FeatureStore) -> None:
    for batches in (
        token_batches(TokenSource(tiny_store, "1"), seed=1, epoch=0, batch_tokens=32),
        token_batches(TokenSource(tiny_store, "1"), seed=1, epoch=0, batch_images=2),
        (tokens["1"] for _, tokens in ordered_batches(sources_of(tiny_store), 2)),
    ):
        places = [batch.data_ptr() for batch in batches]
        assert len(places) == 8
        assert len(set(places)) <= 3


def replaced(store: FeatureStore, manifest: Manifest) -> None:
    """Other tokens in the same place, as `extract --replace` writes them."""
    backbone = TinyBackbone(scale=2.0, weights_sha256="1" * 64)
    extracted(manifest, Path(store.path), backbone=backbone, replace=True)


@pytest.mark.parametrize("plain", [False, True])
def test_a_store_that_is_replaced_while_it_is_open_is_refused(
    tiny_manifest: Manifest, tmp_path: Path, plain: bool
) -> None:
    path = extracted(tiny_manifest, tmp_path / "s.zarr").path
    used, fresh = FeatureStore(path, plain=plain), FeatureStore(path, plain=plain)
    rows = np.arange(16)
    used.tokens("1", rows)
    stream = token_batches(TokenSource(used, "1"), seed=1, epoch=0, batch_tokens=16)
    next(stream)
    replaced(used, tiny_manifest)
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


@pytest.mark.parametrize("plain", [False, True])
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
def test_rows_that_are_not_there_are_refused(
    tiny_store: FeatureStore, rows: list[object], message: str, plain: bool
) -> None:
    store = FeatureStore(tiny_store.path, plain=plain)
    for read in (store.masks, lambda r: store.tokens("1", r), lambda r: store.cls("1", r)):
        with pytest.raises(SpgError, match=message):
            read(np.array(rows))


def test_only_disks_of_this_machine_are_mapped(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._file_system(Path("/proc")) == "proc"
    monkeypatch.setattr(module, "_file_system", lambda _: "nfs4")
    store = FeatureStore(tiny_store.path)
    assert store.mapped("1") is None
    rows = np.array([3, 0])
    assert np.array_equal(store.tokens("1", rows), tiny_store.tokens("1", rows))


def test_streams_in_several_threads_do_not_disturb_each_other(tiny_store: FeatureStore) -> None:
    def run(seed: int) -> list[torch.Tensor]:
        batches = token_batches(TokenSource(store, "1"), seed=seed, epoch=0, batch_tokens=24)
        kept = list(batches)
        next(token_batches(TokenSource(store, "1"), seed=seed, epoch=1, batch_tokens=24)).sum()
        return kept

    store = FeatureStore(tiny_store.path)
    expected = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(run, range(4)))
            assert all(
                a.equal(b)
                for one, other in zip(found, expected, strict=True)
                for a, b in zip(one, other, strict=True)
            )
