"""A fault at the n-th thing that a command does to files below a folder."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_DEEDS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _system(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def _no_memory() -> None:
    raise MemoryError


def _pytorch_no_memory() -> None:
    text = (
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
    )
    raise RuntimeError(f"{text}: you tried to allocate 400000 bytes.")


def _ended() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


FAULTS: dict[str, Callable[[], None]] = {
    "disk full": _system(errno.ENOSPC),
    "read-only": _system(errno.EROFS),
    "out of file handles": _system(errno.EMFILE),
    "out of memory": _no_memory,
    "out of memory in PyTorch": _pytorch_no_memory,
    "SIGTERM": _ended,
}
MADE_BY_WRITES = ("disk full", "read-only")
"""Faults that reading does not meet."""


@dataclass
class Watch:
    """Counts deeds below a folder, and has one of them fail. Python tells its hooks of each file
    that is opened, renamed or removed, and of each folder."""

    folder: Path | None = None
    fails_at: int = -1
    fault: str = ""
    deeds: list[str] = field(default_factory=list)

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.folder is None or event not in (*_DEEDS, "open"):
            return
        path = args[0]
        if not isinstance(path, str | Path) or not str(Path(path).absolute()).startswith(
            f"{self.folder}/"
        ):
            return
        flags = args[2] if event == "open" else _WRITES
        writes = isinstance(flags, int) and flags & _WRITES
        if not writes and self.fault in ("", *MADE_BY_WRITES):
            return
        if event in ("os.remove", "os.rmdir") and self.fault != "SIGTERM":
            return  # room is made by it
        self.deeds.append(f"{event} {Path(path).name}")
        if len(self.deeds) - 1 == self.fails_at:
            FAULTS[self.fault]()


WATCH = Watch()
sys.addaudithook(WATCH)  # no hook can be removed; without a folder it does nothing


@contextmanager
def watched(folder: Path, fault: str = "", fails_at: int = -1) -> Iterator[list[str]]:
    """The deeds below a folder, the one of that number failing."""
    WATCH.folder, WATCH.fault, WATCH.fails_at, WATCH.deeds = folder, fault, fails_at, []
    try:
        yield WATCH.deeds
    finally:
        WATCH.folder = None
