"""explanations.jsonl and explained/: a line an image, and pictures of all or of a few."""

import heapq
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.datasets.walk import EXPLANATIONS
from spg_pipe.errors import naming
from spg_pipe.explain.explanation import Explanation
from spg_pipe.explain.lines import line_of
from spg_pipe.explain.picture import QUALITY, draw


class Explained(NamedTuple):
    """One image of an explanation, and how to draw it."""

    path: str
    """As lines name it."""
    explanation: Explanation
    image: int
    """Number of the image in the explanation."""
    photograph: Callable[[], np.ndarray | None]
    """(H, W, 3) uint8; None where it cannot be read: then there is no picture."""
    anomaly_map: Callable[[], np.ndarray]
    """(h, w) float32, finished."""
    file: Path
    """Of its picture, relative to the folder."""


@dataclass
class ExplanationWriter:
    """Writes into a folder; use it as a context."""

    folder: Path
    shown: tuple[float, float]
    """Values of maps that get the darkest and the brightest colour."""
    atoms: int | None = None
    """As for `line_of`."""
    pictures: int | None = None
    """Only of the images with the highest scores, so many; None: of all."""
    undrawn: int = 0
    """Images whose photograph could not be read."""
    faults: list[OSError] = field(default_factory=list)
    """Of pictures that could not be written: they cost no line."""
    _highest: list[tuple[float, int, Path]] = field(default_factory=list)
    _lines: IO[str] | None = None

    def __enter__(self) -> "ExplanationWriter":
        self._lines = (self.folder / EXPLANATIONS).open("w", encoding="ascii", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines:
            self._lines.close()

    def add(self, item: Explained) -> str:
        """Write an image's line, and its picture if it is among those to be drawn."""
        line = line_of(item.explanation, item.image, item.path, self.atoms)
        if self._lines:
            self._lines.write(f"{line}\n")
        score = float(item.explanation.scores[item.image])
        if self.pictures is None:
            self._draw(item)
        elif self.pictures and (len(self._highest) < self.pictures or score > self._highest[0][0]):
            if self._draw(item):
                # Drawn as it comes, and removed when others are higher: no image is read twice.
                heapq.heappush(self._highest, (score, -len(self._highest), item.file))
            if len(self._highest) > self.pictures:
                (self.folder / heapq.heappop(self._highest)[2]).unlink()
        return line

    def _draw(self, item: Explained) -> bool:
        photograph = item.photograph()
        if photograph is None:
            self.undrawn += 1
            return False
        data = io.BytesIO()
        picture = draw(photograph, item.anomaly_map(), item.explanation, item.image, self.shown)
        picture.save(data, format="JPEG", quality=QUALITY)
        try:
            with naming(item.file, self.folder):
                write_bytes(self.folder / item.file, data.getvalue())
        except OSError as error:
            self.faults.append(error)
            return False
        return True
