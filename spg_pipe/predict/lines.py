"""A file of JSON lines that a killed run has begun: its whole lines are there for the next run."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

from spg_pipe.errors import naming

_WAITING = ".earlier-"


class _Place(NamedTuple):
    """Where a line is in an open file, without its end."""

    descriptor: int
    start: int
    length: int


class GrowingLines:
    """Lines of earlier runs to be looked up, and the same file made anew, line by line.

    While it is made, the earlier lines wait in a hidden file beside it. Should it stop, those of
    both files count: of the new one all, of the waiting one what goes beyond.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.waiting = path, path.with_name(f"{_WAITING}{path.name}")
        self._merged = path.with_name(f"{_WAITING}{path.name}.new")
        self._stack = ExitStack()
        self._stream: IO[bytes] | None = None
        new, old = self._places(path), self._places(self.waiting)
        self._earlier = new + old[len(new) :]

    def __len__(self) -> int:
        """How many earlier lines there are."""
        return len(self._earlier)

    def earlier(self, number: int) -> str:
        """An earlier line; "" if there is no such. From any thread."""
        if number >= len(self._earlier):
            return ""
        place = self._earlier[number]
        return os.pread(place.descriptor, place.length, place.start).decode(errors="replace")

    def begin(self, *, keep: bool = True) -> None:
        """Make the file anew; earlier lines wait, or with `keep` False are forgotten."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not keep:
            self.path.unlink(missing_ok=True)
            self.waiting.unlink(missing_ok=True)
            self._earlier = []
        elif self.waiting.exists() and self.path.exists():
            # Every state in between has the same lines: of the new file all, then the other's rest.
            with self._merged.open("wb") as stream:
                stream.writelines(self.earlier(n).encode() + b"\n" for n in range(len(self)))
            self._merged.replace(self.waiting)
            self.path.unlink()
        elif self.path.exists():
            self.path.rename(self.waiting)
        self._stream = self._stack.enter_context(self.path.open("wb"))

    def add(self, line: str) -> None:
        """Write a line, at once."""
        if self._stream is None:
            raise RuntimeError("a line before `begin`")
        with naming(self.path, self.path):
            self._stream.write(line.encode() + b"\n")
            self._stream.flush()

    def end(self) -> None:
        """All lines are there: the earlier ones go."""
        self.close()
        self.waiting.unlink(missing_ok=True)
        self._merged.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def _places(self, path: Path) -> list[_Place]:
        """The whole lines of a file; none if it is missing."""
        if not path.is_file():
            return []
        stream = self._stack.enter_context(path.open("rb"))
        places, start = [], 0
        for line in stream:
            if not line.endswith(b"\n"):  # its process was killed
                break
            places.append(_Place(stream.fileno(), start, len(line) - 1))
            start += len(line)
        return places


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a finished file."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield line.rstrip("\n")
