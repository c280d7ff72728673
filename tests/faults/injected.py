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
    """Notes deeds below a folder by the faults that can meet them, and has one of them fail. Python
    tells its hooks of each file that is opened, renamed or removed, and of each folder."""

    folder: Path | None = None
    fails_at: tuple[str, int] | None = None
    deeds: dict[str, list[str]] = field(default_factory=dict)

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
        for fault, deeds in self.deeds.items():
            if not writes and fault in MADE_BY_WRITES:
                continue
            if event in ("os.remove", "os.rmdir") and fault != "SIGTERM":
                continue  # room is made by it
            deeds.append(f"{event} {Path(path).name}")
            if self.fails_at == (fault, len(deeds) - 1):
                FAULTS[fault]()


WATCH = Watch()
sys.addaudithook(WATCH)  # no hook can be removed; without a folder it does nothing


@contextmanager
def watched(
    folder: Path, fails_at: tuple[str, int] | None = None
) -> Iterator[dict[str, list[str]]]:
    """Fault → the deeds below a folder that it can meet; the one of that number meets it."""
    WATCH.folder, WATCH.fails_at, WATCH.deeds = folder, fails_at, {fault: [] for fault in FAULTS}
    try:
        yield WATCH.deeds
    finally:
        WATCH.folder = None
