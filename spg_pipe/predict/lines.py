"""The lines that a killed run has begun: those that are whole are there for the next run."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

from spg_pipe.artefacts.files import whole_file
from spg_pipe.datasets.walk import EXPLANATIONS, PREDICTIONS
from spg_pipe.errors import naming

EARLIER = ".earlier.jsonl"
_BETWEEN = b"\t"
"""Of a line and its explanation; no JSON has it raw."""


class _Span(NamedTuple):
    """Where a line is in an open file, without its end."""

    descriptor: int
    start: int
    length: int

    def read(self) -> bytes:
        return os.pread(self.descriptor, self.length, self.start)


class GrowingLines:
    """Lines of earlier runs to be looked up, and the files made anew, line by line.

    An image has a line in predictions.jsonl and, if `explained`, one in explanations.jsonl, which
    is written first. While they are made, the earlier ones wait in one hidden file, each line with
    its explanation, so that a kill cannot part them. Those of all files count, the new ones first.
    """

    def __init__(self, out: Path, *, explained: bool) -> None:
        self._waiting = out / EARLIER
        self._paths = [out / PREDICTIONS] + ([out / EXPLANATIONS] if explained else [])
        self._stack = ExitStack()
        self._streams: list[IO[bytes]] = []
        new = list(zip(*map(self._spans, self._paths), strict=False))
        self.new = len(new)
        """Of the earlier lines, the first ones: those that the last run wrote."""
        self._earlier: list[tuple[_Span, ...]] = [*new, *zip(self._spans(self._waiting))]

    def __len__(self) -> int:
        """How many earlier lines there are."""
        return len(self._earlier)

    def earlier(self, number: int) -> tuple[str, str]:
        """An earlier line and its explanation, "" if there is none. From any thread."""
        line, _, why = self._row(number).partition(_BETWEEN)
        return line.decode(errors="replace"), why.decode(errors="replace")

    def keep(self, numbers: Iterable[int]) -> None:
        """Forget all earlier lines but these, which are counted anew."""
        self._earlier = [self._earlier[number] for number in numbers]

    def remove(self) -> None:
        """Forget the earlier lines, in the files too."""
        self.keep(())
        for path in (*self._paths, self._waiting):
            path.unlink(missing_ok=True)

    def begin(self) -> None:
        """Make the files anew; earlier lines wait."""
        if self._earlier:
            with whole_file(self._waiting) as stream:
                stream.writelines(self._row(number) + b"\n" for number in range(len(self)))
        for path in self._paths:
            path.unlink(missing_ok=True)  # earlier lines are still read from it
        self._streams = [self._stack.enter_context(path.open("xb")) for path in self._paths]

    def add(self, line: str, why: str = "") -> None:
        """Write the lines of an image, at once."""
        if not self._streams:
            raise RuntimeError("a line before `begin`")
        for path, stream, text in [*zip(self._paths, self._streams, (line, why), strict=False)][
            ::-1
        ]:
            with naming(path, path):
                stream.write(text.encode() + b"\n")
                stream.flush()

    def end(self) -> None:
        """All lines are there: the earlier ones go."""
        for stream in self._streams:
            os.fsync(stream.fileno())  # before a record says that all is done
        self.close()
        self._waiting.unlink(missing_ok=True)

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def _row(self, number: int) -> bytes:
        return _BETWEEN.join(span.read() for span in self._earlier[number])

    def _spans(self, path: Path) -> list[_Span]:
        """The whole lines of a file; none if it is missing."""
        if not path.is_file():
            return []
        stream = self._stack.enter_context(path.open("rb"))
        spans, start = [], 0
        for line in stream:
            if not line.endswith(b"\n"):  # its process was killed
                break
            spans.append(_Span(stream.fileno(), start, len(line) - 1))
            start += len(line)
        return spans


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a finished file."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield line.rstrip("\n")
