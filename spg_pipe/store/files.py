"""A store's folder, on this machine or behind a URL."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import zarr
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import FsspecStore, LocalStore, ObjectStore, WrapperStore

from spg_pipe.artefacts.reading import MOST_BYTES, damaged, read_file, read_json, unreadable
from spg_pipe.errors import SpgError
from spg_pipe.recipe.places import Place, refuse_secrets, require_server
from spg_pipe.store.cache import CachedFiles, CacheFolder
from spg_pipe.store.format import COMMAND, SHARD_INDEX
from spg_pipe.store.shards import ShardEntry, crc32c

_LISTED = 1000
"""Files that an object store removes by one request."""
REMOTE_REQUESTS = 8
"""Requests under way at once: their waiting overlaps."""
_OBJECT_STORES = ("s3", "gs", "az")
_RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=30)}
"""Some seconds of waiting in all: a server may start again, but a wrong address is told soon."""
_ADVICE = (
    "See that the address is right, its server answers, and this process has the credentials that "
    "its file system expects (docs/scale.md, “Remote stores”)."
)


class _Objects:
    """What `StoreFiles` needs of fsspec, by obstore, which takes half of its processor time."""

    async_impl = True

    def __init__(self, place: str) -> None:
        from obstore.store import from_url

        self._place, self.store = place, from_url(require_server(place), retry_config=_RETRIES)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Objects, (self._place,)  # credentials are of each machine's environment

    def cat_file(self, name: str, start: int | None = None, end: int | None = None) -> Any:
        """All bytes of an object, or a part: a buffer, whose copy would take as long again."""
        if start is None:
            return self.store.get(name).bytes()
        return self.store.get_range(name, start=start, end=end)

    def info(self, name: str) -> dict[str, object]:
        """Its size."""
        return {"type": "file", "size": self.store.head(name)["size"]}

    def pipe_file(self, name: str, content: bytes, mode: Any) -> None:
        """Make an object; with mode `create` FileExistsError where there is one."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self.store.put(name, content, mode=mode, use_multipart=False)
        except AlreadyExistsError as error:
            raise FileExistsError(name) from error

    def rm(self, names: list[str]) -> None:
        """Remove objects."""
        self.store.delete(names)


class StoreFiles:
    """The files of a store by their names below it.

    Parameters
    ----------
    place : Path or str
        A folder, or any URL that fsspec knows (`s3://…`, `https://…`, `memory://…`).

    Raises
    ------
    SpgError
        By all methods too, with the address and the cause, where a file may be there but cannot be
        read: no permission, no connection, no file handles. At once for an address that holds a
        password.
    """

    def __init__(self, place: Path | str) -> None:
        refuse_secrets(str(place))
        self.local: Path | None = None
        self.place = place
        with self._access():
            self._fs: Any
            if "://" not in str(place):  # fsspec reads a::b, file:a and ~a in ways of its own
                self._fs, self._root = LocalFileSystem(), str(Path(place).absolute())
            elif str(place).partition("://")[0] in _OBJECT_STORES and find_spec("obstore"):
                self._fs, self._root = _Objects(str(place)), ""
            else:
                self._fs, self._root = url_to_fs(str(place))
        plain = Path(place) if "://" not in str(place) else Path(self._root)
        self.local = plain if isinstance(self._fs, LocalFileSystem) else None
        """The folder, or None for a store elsewhere."""
        self.place = self.local if self.local is not None else str(place)
        # Only file systems of fsspec that are made for it may be asked by several threads.
        self.threads = REMOTE_REQUESTS if getattr(self._fs, "async_impl", False) else 1

    @contextmanager
    def _access(self, name: str = "", to: str = "read") -> Iterator[None]:
        """FileNotFoundError where there is no such file, FileExistsError where one is in the way,
        SpgError for whatever else is raised."""
        place = f"{self.place}/{name}" if name else self.place
        try:
            yield
        except (SpgError, FileExistsError):
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            # fsspec says so of any failed request for a file's size, too.
            cause = error.__cause__ if self.local is None else None
            gone = isinstance(cause, KeyError) or getattr(cause, "status", 0) in (404, 410)
            if isinstance(cause, Exception) and not gone:
                raise unreadable(place, cause, to, _ADVICE) from error
            raise FileNotFoundError(str(place)) from error
        except Exception as error:
            if self.local is not None and not isinstance(error, OSError | MemoryError):
                raise damaged(place, "store", str(error), COMMAND) from error
            raise unreadable(place, error, to, "" if self.local else _ADVICE) from error

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's bytes, at most so many; FileNotFoundError where there is none."""
        with self._access(name):
            if self.local is not None:
                return read_file(self.local / name, most)
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def create(self, name: str, content: bytes) -> bool:
        """Make a file of a store elsewhere, whole; False where there is one of that name."""
        try:
            self.put(name, content, mode="create")
        except FileExistsError:
            return False
        return True

    def put(self, name: str, content: bytes, *, mode: str = "overwrite") -> None:
        """Make or replace a file of a store elsewhere, whole; an SpgError if it cannot be."""
        try:
            with self._access(name, "written"):
                self._fs.pipe_file(f"{self._root}/{name}", content, mode=mode)
        except FileNotFoundError as error:
            raise SpgError(
                f"{self.place}/{name} cannot be written: there is no such bucket or folder. Make "
                "it with the file system's own tool, or name another place."
            ) from error

    def remove(self, names: Sequence[str]) -> None:
        """Remove those of the files of a store elsewhere that are there."""
        there = [name for name, size in self.sizes(names).items() if size is not None]
        with self._access(to="written"):
            for start in range(0, len(there), _LISTED):
                self._fs.rm([f"{self._root}/{name}" for name in there[start : start + _LISTED]])

    def part(self, entry: ShardEntry, start: int, end: int) -> memoryview:
        """A data file's bytes from one position to another.

        Raises DamagedError where the file is missing or cut off, SpgError as all methods.
        """
        place = f"{self.place}/{entry.name}"
        try:
            with self._access(entry.name):
                name = f"{self._root}/{entry.name}"
                content = memoryview(self._fs.cat_file(name, start=start, end=end))
        except FileNotFoundError as error:
            raise damaged(place, "store", "the file is missing", COMMAND) from error
        _require_length(place, len(content), end - start, entry.bytes)
        return content

    def cached(self, fingerprint: str, entries: Sequence[ShardEntry]) -> CachedFiles | None:
        """The cache of these data files; None of a local store, and where none is asked for."""
        where = CacheFolder.asked_for() if self.local is None else None
        if where is None:
            return None
        place, read = str(self.place), self.part
        return CachedFiles(where, place, fingerprint, entries, read, self.threads)

    def size(self, name: str) -> int | None:
        """A file's size in bytes, None where there is no such file."""
        try:
            with self._access(name):
                found = self._fs.info(f"{self._root}/{name}")
                if found["type"] == "file" and found["size"] is None:
                    raise ValueError("the server does not say how large it is")
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def sizes(self, names: Sequence[str]) -> dict[str, int | None]:
        """Sizes of files in bytes, None where there is no such file: of a store elsewhere by one
        request for a thousand, or where nothing can be listed, by one for each."""
        if self.local is None:
            try:
                listed = self._listed()
            except Exception:  # a bucket may be open for reading alone
                listed = None
            if listed is not None:
                return {name: listed.get(name) for name in names}
        with ThreadPoolExecutor(self.threads, "spg-sizes") as pool:
            return dict(zip(names, pool.map(self.size, names), strict=True))

    def _listed(self) -> dict[str, int | None] | None:
        """Name → size of every file of a store elsewhere; None of a web server."""
        if isinstance(self._fs, _Objects):
            return {one["path"]: one["size"] for part in self._fs.store.list() for one in part}
        if "http" in self._fs.protocol:
            return None
        self._fs.invalidate_cache()  # other processes write
        found = self._fs.find(self._root, detail=True)
        return {path[len(self._root) + 1 :]: one["size"] for path, one in found.items()}

    def attributes(self) -> Mapping[str, Any] | None:
        """The group's attributes, or None where there is no group or a damaged one."""
        attributes = self.metadata().get("attributes")
        return attributes if isinstance(attributes, dict) else None

    def metadata(self, name: str = "zarr.json") -> Mapping[str, Any]:
        """What a zarr.json says, of the group or of an array; empty where it is none."""
        try:
            content = read_json(self.read(name, MOST_BYTES))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def group(self, fingerprint: str, entries: Sequence[ShardEntry]) -> Any:
        """The store as a Zarr group, for reading; `entries` are its data files."""
        inner: Any
        place = str(self.place)
        if self.local is not None:
            inner = LocalStore(self.local, read_only=True)
        elif isinstance(self._fs, _Objects):
            inner = ObjectStore(self._fs.store, read_only=True)
        else:
            inner = FsspecStore.from_url(place, read_only=True)
        whole = _WholeFiles(
            inner,
            str(self.place),
            {entry.name: entry for entry in entries},
            self.cached(fingerprint, entries),
        )
        return zarr.open_group(whole, mode="r")


class _WholeFiles(WrapperStore[Any]):
    """A Zarr store of which every listed file is there, as it was written, and every answer as long
    as asked for.

    Zarr alone reads a missing file as fill values, takes what a web server sends that does not know
    `Range` for the part that it asked for, and does not look whether a bit has changed. Files are
    held against their checksums when they are first read; but not tokens, of which a whole file is
    large: those are, image by image, by whoever reads them.
    """

    def __init__(
        self,
        store: Any,
        place: str,
        entries: Mapping[str, ShardEntry],
        cached: CachedFiles | None,
    ) -> None:
        super().__init__(store)
        self._place, self._entries, self._cached = place, entries, cached
        self._intact: set[str] = set()

    def _with_store(self, store: Any) -> "_WholeFiles":
        return type(self)(store, self._place, self._entries, self._cached)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """See Zarr's `Store`; raises SpgError."""
        entry = self._entries.get(key)
        if entry is not None and key not in self._intact and not key.startswith("tokens_"):
            whole = await self._answer(key, prototype, None)
            if crc32c(whole.to_bytes()) != entry.crc32c and self._cached is not None:
                self._cached.drop(entry)  # a bit of a kept file may have changed
                whole = await self._answer(key, prototype, None)
            if crc32c(whole.to_bytes()) != entry.crc32c:
                fault = "its bytes do not give the recorded crc32c"
                raise damaged(f"{self._place}/{key}", "store", fault, COMMAND)
            self._intact.add(key)
            if byte_range is None:
                return whole
        return await self._answer(key, prototype, byte_range)

    async def _answer(self, key: str, prototype: Any, byte_range: Any) -> Any:
        """What is there, of the size that was asked for."""
        place, entry = f"{self._place}/{key}", self._entries.get(key)
        if entry is not None and self._cached is not None and self._cached.keeps(entry):
            start, end = _span(byte_range, entry.bytes)
            kept = await asyncio.to_thread(self._cached.read, entry, start, end)
            return prototype.buffer.from_bytes(kept)
        try:
            value = await self._store.get(key, prototype, byte_range)
        except Exception as error:
            raise unreadable(place, error) from error
        if entry is None:  # metadata
            return value
        if value is None:
            raise damaged(place, "store", "the file is missing", COMMAND)
        start, end = _span(byte_range, entry.bytes)
        _require_length(place, len(value), end - start, entry.bytes)
        return value


def _span(byte_range: Any, size: int) -> tuple[int, int]:
    """Which bytes of a file of this size are asked for: the first and the one after the last."""
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, SuffixByteRequest):
        return size - byte_range.suffix, size
    return 0, size


def _require_length(place: str, found: int, asked: int, size: int) -> None:
    """Refuse an answer that is longer or shorter than what was asked of a file of this size."""
    if found == asked:
        return
    if found == size:
        raise SpgError(
            f"{place}: the server sent the whole file where {asked:,} bytes were asked for. "
            "Use a web server that knows Range requests (nginx, Caddy, S3), or copy the store "
            "to this machine."
        )
    raise damaged(place, "store", f"{found:,} bytes came, expected {asked:,}", COMMAND)


def read_attributes(root: Place) -> Mapping[str, Any] | None:
    """The attributes of a group, or None where there is no readable one."""
    return StoreFiles(root).attributes()


def is_there(place: Place) -> bool:
    """Whether a folder is there, or the beginning of a store behind a URL."""
    if isinstance(place, Path):
        return place.exists()
    return StoreFiles(place).size("zarr.json") is not None


def is_damaged_store(root: Path) -> bool:
    """Whether a folder holds a store's data without its metadata."""
    has_data = (root / SHARD_INDEX).is_file() and any(root.glob("tokens_*"))
    return has_data and read_attributes(root) is None
