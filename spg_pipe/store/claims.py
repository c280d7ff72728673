"""Who writes: the operating system's locks on a store and on its shards.

A lock ends with its process, however that dies. Over several machines it needs a file system that
knows it there, too (docs/scale.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from spg_pipe.artefacts.files import require_writable
from spg_pipe.errors import SpgError

PATIENCE = 30.0
"""Seconds that a writer of shards waits for a process that begins or finishes the store."""


def locked(path: Path, patience: float = 0.0) -> FileLock:
    """The lock on a store's place, `.<store>.lock` beside it; taken at once, or in so many seconds.

    The empty file stays: removing a locked file would let two processes lock two files of the same
    name. Raises SpgError if another process holds it, or the place is a link; OSError where no file
    can be made.
    """
    if not path.name:
        raise SpgError(f"{path} is no place for a store. Name a folder of its own.")
    refuse_link(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=patience, blocking=patience > 0)
    except Timeout as error:
        if not file.exists():  # FileLock waits, too, where no file can be made, as in /proc
            require_writable(file)
        raise SpgError(
            f"Another process is writing {path}. Wait for it to end, stop it, or write "
            "to another place with --out."
        ) from error
    return lock


def refuse_link(path: Path) -> None:
    """Raise SpgError for a link in a store's place, which would have another lock than the store,
    and which a store of other content would replace."""
    if path.is_symlink():
        raise SpgError(
            f"{path} is a link to {path.readlink()}; a store is a folder. Name that folder itself, "
            "or remove the link."
        )


@contextmanager
def holding(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock on a store's place, as `locked`, for the block."""
    lock = locked(path, patience)
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, shard: int) -> FileLock | None:
    """The lock on one shard, or None if a living process holds it.

    Only for who holds the lock of the store at this moment, so that `require_unclaimed` can tell.
    """
    folder = _claims(path)
    folder.mkdir(exist_ok=True)
    # Another thread gives it back than the one that took it.
    lock = FileLock(folder / f"{shard}.lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def require_unclaimed(path: Path) -> None:
    """Raise SpgError while processes write shards; else remove the files of their locks.

    Only for who holds the lock of the store, without which no shard can be claimed.
    """
    folder, held = _claims(path), []
    for file in folder.glob("*.lock"):
        if not file.stem.isdecimal():
            continue  # not of a shard
        lock = FileLock(file)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            held.append(int(file.stem))
            continue
        lock.release()
        file.unlink()
    if held:
        raise SpgError(
            f"Other processes are writing shards of {path} ({ranges_of(held)}). Wait for them to "
            "end, or stop them; then give the same command again."
        )
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def ranges_of(shards: list[int], most: int = 5) -> str:
    """`0:3, 7:8`, as --shards takes them; of many ranges the first few, and how many more."""
    ranges: list[list[int]] = []
    for shard in sorted(shards):
        if ranges and ranges[-1][1] == shard:
            ranges[-1][1] += 1
        else:
            ranges.append([shard, shard + 1])
    more = f" and {len(ranges) - most} more ranges" if len(ranges) > most else ""
    return ", ".join(f"{first}:{end}" for first, end in ranges[:most]) + more


def _claims(path: Path) -> Path:
    folder = path.with_name(f".{path.name}.locks")
    if folder.is_symlink():
        raise SpgError(
            f"{folder} is a link to {folder.readlink()}; a folder for locks is expected. Remove it."
        )
    return folder
