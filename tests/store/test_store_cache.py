"""Remote stores kept on this machine: the same bits, whole files or none, never above the limit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tiny import files

from spg_pipe.errors import DamagedError, SpgError, UsageError
from spg_pipe.store.cache import VARIABLE
from spg_pipe.store.files import StoreFiles
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.tokens import RemoteTokens

URL = "memory://cached/t.zarr"
ROWS = np.array([9, 0, 1, 15])


@pytest.fixture
def remote(tiny_store: FeatureStore) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for name, content in files(tiny_store.path).items():
        memory.pipe_file(f"/cached/t.zarr/{name}", content)
    yield URL
    memory.rm("/cached", recursive=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, f"1MB:{tmp_path / 'cache'}")
    return tmp_path / "cache"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose parts are asked for."""
    asked: list[str] = []
    part = StoreFiles.part

    def counted(self: StoreFiles, entry: object, start: int, end: int) -> bytes:
        asked.append(entry.name)
        return part(self, entry, start, end)

    monkeypatch.setattr(StoreFiles, "part", counted)
    return asked


def kept(cache: Path) -> dict[str, int]:
    """Name → size of everything in a cache but its locks."""
    paths = [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]
    return {path.name: path.stat().st_size for path in paths}


def require_equal(store: FeatureStore, other: FeatureStore) -> None:
    for layer in store.layers:
        assert np.array_equal(store.tokens(layer, ROWS), other.tokens(layer, ROWS))
        assert np.array_equal(store.cls(layer, ROWS), other.cls(layer, ROWS))
    assert np.array_equal(store.masks(ROWS), other.masks(ROWS))
    assert store.table.equals(other.table)


def test_neighbours_are_one_request_and_nothing_is_kept_unless_asked(
    remote, requests, tiny_store, tmp_path
):
    store = FeatureStore(remote)
    assert isinstance(store.token_array("1"), RemoteTokens)
    require_equal(store, tiny_store)
    # Images 9, 0 and 1, 15: three requests a layer; whole files go through Zarr.
    assert sorted(requests) == sorted(
        f"tokens_{layer}/c/{shard}/0/0" for layer in "12" for shard in (0, 1, 2)
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_is_read_without_the_server(remote, cache, requests, tiny_store):
    require_equal(FeatureStore(remote), tiny_store)
    assert len(requests) == len(set(requests)) == len(kept(cache))
    requests.clear()
    again = FeatureStore(remote)
    require_equal(again, tiny_store)
    assert np.array_equal(
        FeatureStore(remote, plain=True).tokens("1", ROWS), tiny_store.tokens("1", ROWS)
    )
    assert requests == []


def test_the_longest_unused_leaves_and_larger_layers_are_never_kept(
    remote, cache, requests, tiny_store, monkeypatch
):
    sizes = {entry.name: entry.bytes for entry in tiny_store.entries}
    layers = {x: sum(n for name, n in sizes.items() if f"tokens_{x}/" in name) for x in "12"}
    assert layers["1"] > layers["2"]
    monkeypatch.setenv(VARIABLE, f"{layers['1']}:{cache}")
    store = FeatureStore(remote)
    store.tokens("2", ROWS)
    for image in ROWS:
        store.tokens("1", np.array([image]))
        assert sum(kept(cache).values()) <= layers["1"]
    names = "".join(kept(cache))
    assert "tokens_1" in names
    assert "tokens_2" not in names
    monkeypatch.setenv(VARIABLE, f"{layers['1'] - 1}:{cache}")
    requests.clear()
    smaller = FeatureStore(remote)
    assert np.array_equal(smaller.tokens("1", ROWS), tiny_store.tokens("1", ROWS))
    assert [name for name in requests if name.startswith("tokens_1")] != []


def test_other_files_in_the_folder_never_leave(remote, cache, tiny_store):
    own = cache / "documents" / "thesis-1.odt"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(2 * 10**6))  # more than the limit
    require_equal(FeatureStore(remote), tiny_store)
    assert own.exists()
    assert len(kept(cache)) > 1


def test_a_kept_file_with_a_changed_bit_is_loaded_again(remote, cache, requests, tiny_store):
    require_equal(FeatureStore(remote), tiny_store)
    for path in [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]:
        content = bytearray(path.read_bytes())
        content[3] ^= 16
        path.write_bytes(content)
    requests.clear()
    require_equal(FeatureStore(remote), tiny_store)
    assert {name.partition("_")[0] for name in requests} >= {"tokens", "prefix", "label/c/0"}


@pytest.mark.parametrize("what", ["tokens_1/c/1/0/0", "label/c/0", "mask/c/0/0/0"])
def test_a_damaged_remote_file_is_named_and_not_kept(remote, cache, what):
    memory, place = fsspec.filesystem("memory"), f"/cached/t.zarr/{what}"
    content = bytearray(memory.cat_file(place))
    content[1] ^= 4
    memory.pipe_file(place, bytes(content))
    store = FeatureStore(remote)
    with pytest.raises(DamagedError, match=f"memory://cached/t.zarr/{what} .*crc32c"):
        _ = store.table, store.masks(ROWS), store.tokens("1", ROWS)
    assert not [name for name in kept(cache) if what.replace("/", "-") in name]


def test_what_a_killed_process_left_is_replaced(remote, cache, tiny_store):
    require_equal(FeatureStore(remote), tiny_store)
    for path in list(cache.rglob("tokens*")):
        path.rename(f"{path}.part")
    (cut,) = cache.rglob("label*")
    cut.write_bytes(cut.read_bytes()[:-1])
    require_equal(FeatureStore(remote), tiny_store)
    assert not list(cache.rglob("*.part"))


def test_an_interrupted_load_leaves_nothing(remote, cache, monkeypatch):
    def stopped(*_: object, **__: object) -> bytes:
        raise KeyboardInterrupt

    store = FeatureStore(remote)
    store.token_array("1")
    before = kept(cache)
    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.tokens("1", ROWS)
    assert kept(cache) == before


SHARER = """
import sys, time
from pathlib import Path
from spg_pipe.store.cache import CachedFiles, CacheFolder
from spg_pipe.store.shards import ShardEntry, crc32c
folder = Path(sys.argv[1])
content = (folder / "content").read_bytes()
size, checksum = len(content), crc32c(content)
entry = ShardEntry(name="tokens_1/c/0/0/0", bytes=size, crc32c=checksum, images=(0, 1))
def fetch(entry, start, end):
    with open(folder / "asked", "a") as log:
        log.write(f"{start}\\n")
    time.sleep(0.2)
    return content[start:end]
cached = CachedFiles(CacheFolder(folder / "cache", 10**8), "s3://b/x", "f" * 64, [entry], fetch, 2)
assert cached.read(entry, 0, size) == content
"""


def test_processes_share_what_one_of_them_loads(tmp_path):
    (tmp_path / "content").write_bytes(os.urandom(17 * 2**20))
    together = [subprocess.Popen([sys.executable, "-c", SHARER, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(100) for process in together] == [0, 0, 0]
    starts = (tmp_path / "asked").read_text().split()
    assert sorted(map(int, starts)) == [0, 8 * 2**20, 16 * 2**20]


@pytest.mark.parametrize(
    "text", ["/x", "10GB", "10GB:relative", "ten:/x", "-1GB:/x", f"{9:0400}:/x"]
)
def test_a_cache_that_cannot_be_understood_is_refused(remote, monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match=rf"{VARIABLE} is .*200GB:/fast"):
        FeatureStore(remote).array("label")


def test_a_cache_that_cannot_be_written_is_one_message(remote, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(VARIABLE, f"1GB:{tmp_path / 'file'}")
    with pytest.raises(SpgError, match=rf"cache of remote stores.*file.*Unset {VARIABLE}"):
        FeatureStore(remote).tokens("1", ROWS)


@pytest.mark.parametrize(
    "place",
    [
        "s3://key:geheim@bucket/x.zarr",
        "HTTPS://geheim@host/x.zarr",
        "https://me:geheim@host/x.zarr",
        "simplecache::ftp://me:geheim@host/x.zarr",
        "https://host/x.zarr?a=b@c:geheim",
    ],
)
def test_an_address_with_a_password_is_refused_and_never_shown(place):
    with pytest.raises(SpgError, match="holds a password or a query") as error:
        FeatureStore(place)
    assert "geheim" not in str(error.value)
    assert error.value.__cause__ is error.value.__context__ is None
