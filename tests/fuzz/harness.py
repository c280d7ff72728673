"""Running a command on damaged input, and seeing whatever it must not do."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from e2e.helpers import spg

SECONDS = 60
"""Longer than any command here takes; what has not ended by then hangs."""
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
_CONTACTS = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_watch: list[tuple[Path, list[str]]] = []
"""The folder that may be written, and what was done beside that; empty while nobody looks."""


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _watch:
        return
    folder, seen = _watch[-1]
    if event in _STARTS or event in _CONTACTS:
        seen.append(f"{event} {arguments}")
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, _, flags = arguments
        target = Path(os.fsdecode(path)).resolve()  # type: ignore[arg-type]
        writes = isinstance(flags, int) and flags & _WRITES
        if writes and not target.is_relative_to(folder) and target != Path(os.devnull):
            seen.append(f"writes {target}")


@contextlib.contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Fail if the block starts a process, contacts a host, writes outside the folder, or hangs."""
    if not getattr(sys, "_spg_fuzz_hook", False):
        sys.addaudithook(_hook)  # it cannot be removed
        sys._spg_fuzz_hook = True  # type: ignore[attr-defined]

    def hangs(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    seen: list[str] = []
    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(SECONDS)
    _watch.append((folder.resolve(), seen))
    try:
        yield
    finally:
        _watch.pop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert not seen, seen


def ends_well(*arguments: object, cwd: Path) -> str:
    """Run `spg-pipe …` below `nothing_outside(cwd)`: it succeeds, or fails with one message.

    Returns what it printed, both streams. An exception that is no message fails the test.
    """
    with nothing_outside(cwd):
        done = spg(*arguments, cwd=cwd)
    assert done.returncode in (0, 1, 2), done
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    if done.returncode == 1:
        assert done.stderr.count("Error: ") == 1, done.stderr
    return done.stdout + done.stderr
