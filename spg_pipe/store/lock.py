"""One writer at a time in a store's place."""

from pathlib import Path

from spg_pipe.errors import SpgError


class WriterLock:
    """An operating system's lock on `.<store>.lock` beside the store.

    It ends with its process, however that dies. The empty file stays: removing a locked file would
    let two processes lock two files of the same name.

    Parameters
    ----------
    path : Path
        The store's folder.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._store = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> None:
        """Take the lock at once.

        Raises
        ------
        SpgError
            If another process holds it.
        """
        from filelock import Timeout

        self._store.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise SpgError(
                f"Another process is writing {self._store}. Wait for it to end, stop it, or write "
                "to another place with --out."
            ) from error

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        self._lock.release()
