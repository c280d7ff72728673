"""A store's folder, on this machine or behind a URL."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from spg_pipe.artefacts.reading import MOST_BYTES, damaged, read_file, read_json, unreadable
from spg_pipe.errors import SpgError
from spg_pipe.store.format import COMMAND, SHARD_INDEX
from spg_pipe.store.shards import ShardEntry, crc32c


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
        read: no permission, no connection, no file handles.
    """

    def __init__(self, place: Path | str) -> None:
        self.local: Path | None = None
        self.place = place
        with self._access():
            self._fs, self._root = url_to_fs(str(place))
        plain = Path(place) if "://" not in str(place) else Path(self._root)
        self.local = plain if isinstance(self._fs, LocalFileSystem) else None
        """The folder, or None for a store elsewhere."""
        self.place = self.local if self.local is not None else str(place)

    @contextmanager
    def _access(self, name: str = "") -> Iterator[None]:
        """FileNotFoundError where there is no such file, SpgError for whatever else is raised."""
        place = f"{self.place}/{name}" if name else self.place
        try:
            yield
        except SpgError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            # fsspec says so of any failed request for a file's size, too.
            cause = error.__cause__ if self.local is None else None
            if isinstance(cause, Exception) and getattr(cause, "status", 0) not in (404, 410):
                raise unreadable(place, cause) from error
            raise FileNotFoundError(str(place)) from error
        except Exception as error:
            if self.local is not None and not isinstance(error, OSError | MemoryError):
                raise damaged(place, "store", str(error), COMMAND) from error
            raise unreadable(place, error) from error

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's bytes, at most so many; FileNotFoundError where there is none."""
        with self._access(name):
            if self.local is not None:
                return read_file(self.local / name, most)
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))

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

    def group(self, entries: Mapping[str, ShardEntry]) -> Any:
        """The store as a Zarr group, for reading; `entries` are its data files by their names."""
        inner: Any = (
            LocalStore(self.local, read_only=True)
            if self.local is not None
            else FsspecStore.from_url(str(self.place), read_only=True)
        )
        return zarr.open_group(_WholeFiles(inner, str(self.place), entries), mode="r")


class _WholeFiles(WrapperStore[Any]):
    """A Zarr store of which every listed file is there, as it was written, and every answer as long
    as asked for.

    Zarr alone reads a missing file as fill values, takes what a web server sends that does not know
    `Range` for the part that it asked for, and does not look whether a bit has changed. Files are
    held against their checksums when they are first read; but not tokens, of which a whole file is
    large: those are, image by image, by whoever reads them.
    """

    def __init__(self, store: Any, place: str, entries: Mapping[str, ShardEntry]) -> None:
        super().__init__(store)
        self._place, self._entries = place, entries
        self._intact: set[str] = set()

    def _with_store(self, store: Any) -> "_WholeFiles":
        return type(self)(store, self._place, self._entries)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """See Zarr's `Store`; raises SpgError."""
        entry = self._entries.get(key)
        if entry is not None and key not in self._intact and not key.startswith("tokens_"):
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
        place = f"{self._place}/{key}"
        try:
            value = await self._store.get(key, prototype, byte_range)
        except Exception as error:
            raise unreadable(place, error) from error
        entry = self._entries.get(key)
        if entry is None:  # metadata
            return value
        if value is None:
            raise damaged(place, "store", "the file is missing", COMMAND)
        asked = size = entry.bytes
        if isinstance(byte_range, RangeByteRequest):
            asked = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            asked = byte_range.suffix
        if len(value) == asked:
            return value
        if len(value) == size:
            raise SpgError(
                f"{place}: the server sent the whole file where {asked:,} bytes were asked for. "
                "Use a web server that knows Range requests (nginx, Caddy, S3), or copy the store "
                "to this machine."
            )
        fault = f"{len(value):,} bytes came, expected {asked:,}"
        raise damaged(place, "store", fault, COMMAND)


def read_attributes(root: Path) -> Mapping[str, Any] | None:
    """The attributes of a local group, or None where there is no readable one."""
    return StoreFiles(root).attributes()


def is_damaged_store(root: Path) -> bool:
    """Whether a folder holds a store's data without its metadata."""
    has_data = (root / SHARD_INDEX).is_file() and any(root.glob("tokens_*"))
    return has_data and read_attributes(root) is None
