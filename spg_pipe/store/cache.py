"""Files of remote stores, kept on this machine's disk (docs/scale.md, "Remote stores").

A kept file is whole or absent: it is loaded under another name, held against its crc32c and
renamed. It is not synced to the disk, because whoever reads it checks it again.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from spg_pipe.artefacts.reading import damaged
from spg_pipe.errors import SpgError, UsageError, told
from spg_pipe.store.format import COMMAND
from spg_pipe.store.shards import ShardEntry, crc32c

VARIABLE = "SPG_PIPE_CACHE"
"""The environment variable that asks for a cache: `200GB:/fast/disk/spg`."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
REQUEST_BYTES = 8 * 1024**2
"""Largest request for several images: with half of it a server's work per request shows."""
_LOCKS = 64
"""Files that may be loaded at the same time: a lock each would leave as many empty files."""

_FINGERPRINT = "[0-9a-f]" * 64
"""Of a store, as a pattern: the folder may hold what is none of the cache's."""

Fetch = Callable[[ShardEntry, int, int], memoryview]
"""A file's bytes from one position to another, from the store itself."""


class CacheFolder(NamedTuple):
    """Where files are kept, and how many bytes of them."""

    folder: Path
    limit: int

    @classmethod
    def asked_for(cls) -> "CacheFolder | None":
        """What the environment says, None for nothing; a `UsageError` if that is unclear."""
        text = os.environ.get(VARIABLE, "")
        if not text:
            return None
        match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?) ?([KMGT]?)B?:(.+)", text)
        if match is None or not Path(match[3]).is_absolute():
            raise UsageError(
                f"{VARIABLE} is {text!r}; expected a size and a folder's full path, for instance "
                "200GB:/fast/disk/spg-cache. Unset it for no cache."
            )
        return cls(Path(match[3]), int(float(match[1]) * _UNITS[match[2]]))


class CachedFiles:
    """The files of one remote store that are kept, or loaded when they are first asked for.

    Arrays are kept whose files fit in the limit together; of larger ones each epoch would load
    every file anew. What was used longest ago leaves, of whichever store. Processes share the
    folder: a file is loaded by one of them while others wait for it.

    Parameters
    ----------
    where : CacheFolder
    place : str
        The store's address, for messages.
    fingerprint : str
        The store's; with a file's name and its crc32c it is the file's key.
    entries : sequence of ShardEntry
        All data files of the store.
    fetch : callable
        Reads a part of a file from the store.
    threads : int
        Calls of `fetch` at once.
    """

    def __init__(
        self,
        where: CacheFolder,
        place: str,
        fingerprint: str,
        entries: Sequence[ShardEntry],
        fetch: Fetch,
        threads: int,
    ) -> None:
        self._where, self._place, self._folder = where, place, where.folder / fingerprint
        self._fetch, self._threads = fetch, threads
        sizes: dict[str, int] = defaultdict(int)
        for entry in entries:
            sizes[_array(entry)] += entry.bytes
        self._kept = {array for array, size in sizes.items() if size <= where.limit}

    def keeps(self, entry: ShardEntry) -> bool:
        """Whether the file's array fits."""
        return _array(entry) in self._kept

    @contextmanager
    def opened(self, entry: ShardEntry) -> Iterator[int]:
        """A descriptor of the kept file, whole, also if it leaves meanwhile.

        Raises SpgError if the file cannot be loaded or kept, DamagedError if it is not what was
        written.
        """
        descriptor = self._open(entry)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, entry: ShardEntry, start: int, end: int) -> bytes:
        """A part of a kept file."""
        with self.opened(entry) as descriptor:
            return os.pread(descriptor, end - start, start)

    def drop(self, entry: ShardEntry) -> None:
        """Forget a file, which is loaded again when it is next asked for."""
        self._path(entry).unlink(missing_ok=True)

    def _path(self, entry: ShardEntry) -> Path:
        return self._folder / f"{entry.name.replace('/', '-')}-{entry.crc32c:08x}"

    def _open(self, entry: ShardEntry) -> int:
        path = self._path(entry)
        try:
            if (descriptor := _whole(path, entry.bytes)) is not None:
                return descriptor
            locks = self._where.folder / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"{crc32c(path.name.encode()) % _LOCKS}.lock"):
                # Another process, or thread, may have loaded it meanwhile.
                descriptor = _whole(path, entry.bytes)
                return self._load(entry, path) if descriptor is None else descriptor
        except OSError as error:
            raise SpgError(
                f"The cache of remote stores cannot be used. {told(error, self._where.folder)} "
                f"Unset {VARIABLE}, which names it, to work without one."
            ) from error

    def _load(self, entry: ShardEntry, path: Path) -> int:
        """Load a file; its descriptor stays good if other processes' files push it out at once."""
        part = path.with_name(f"{path.name}.part")
        with FileLock(self._where.folder / "locks" / "room.lock"):
            part.unlink(missing_ok=True)  # a killed process left it
            self._make_room(entry.bytes)
            self._folder.mkdir(exist_ok=True)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            os.truncate(descriptor, entry.bytes)  # counts from now on
        try:
            self._fill(entry, descriptor)
            if _checksum(descriptor, entry.bytes) != entry.crc32c:
                fault = "its bytes do not give the recorded crc32c"
                raise damaged(f"{self._place}/{entry.name}", "store", fault, COMMAND)
            with suppress(FileNotFoundError):  # pushed out
                part.replace(path)
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            raise
        return descriptor

    def _fill(self, entry: ShardEntry, descriptor: int) -> None:
        def load(start: int) -> None:
            piece = self._fetch(entry, start, min(start + REQUEST_BYTES, entry.bytes))
            while piece:
                written = os.pwrite(descriptor, piece, start)
                piece, start = piece[written:], start + written

        with ThreadPoolExecutor(self._threads, "spg-load") as pool:
            list(pool.map(load, range(0, entry.bytes, REQUEST_BYTES)))

    def _make_room(self, needed: int) -> None:
        """Remove what was used longest ago, until so many bytes more fit in."""
        kept = []
        for path in self._where.folder.glob(f"{_FINGERPRINT}/*-*"):
            with suppress(FileNotFoundError):  # renamed, or dropped, since it was listed
                status = path.stat()
                kept.append((status.st_mtime_ns, status.st_size, path))
        held = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if held + needed <= self._where.limit:
                return
            path.unlink(missing_ok=True)
            held -= size


def _array(entry: ShardEntry) -> str:
    return entry.name.partition("/")[0]


def _whole(path: Path, size: int) -> int | None:
    """A descriptor of a file of this size, noted as used now; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    os.utime(descriptor)
    return descriptor


def _checksum(descriptor: int, size: int) -> int:
    """crc32c of a file's bytes."""
    checksum = 0
    for start in range(0, size, REQUEST_BYTES):
        checksum = crc32c(os.pread(descriptor, REQUEST_BYTES, start), checksum)
    return checksum
