"""explanations.jsonl and explained/: a line an image, and pictures of all or of a few."""

import heapq
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    file: Path
    """Of its picture, relative to the folder."""
    pixels: Callable[[], tuple[np.ndarray, np.ndarray] | None]
    """Photograph (H, W, 3) uint8 and finished map (h, w) float32; None where the photograph cannot
    be read: then there is no picture."""
    about: Mapping[str, object] | None = None
    """As for `line_of`."""


@dataclass
class ExplanationWriter:
    """Lines and pictures of images, one after the other; see `writing`."""

    folder: Path
    shown: tuple[float, float]
    """Values of maps that get the darkest and the brightest colour."""
    lines: IO[str]
    atoms: int | None
    """List only so many contributions an image; None: all."""
    pictures: int | None
    """Draw only so many images, those with the highest scores; None: all."""
    undrawn: int = 0
    """Images whose photograph could not be read."""
    faults: list[OSError] = field(default_factory=list)
    """Of pictures that could not be written: they cost no line."""
    _highest: list[tuple[float, int, Path]] = field(default_factory=list)

    def add(self, item: Explained) -> str:
        """Write an image's line, and its picture if it is among those to be drawn."""
        line = line_of(item.explanation, item.image, item.path, self.atoms, item.about)
        self.lines.write(f"{line}\n")
        if self.pictures is None:
            self.draw(item)
        elif self.pictures:
            self._draw_if_high(item, self.pictures)
        return line

    def _draw_if_high(self, item: Explained, most: int) -> None:
        """Drawn as it comes, and removed when others are higher: no image is read twice."""
        score = float(item.explanation.scores[item.image])
        full = len(self._highest) == most
        if (full and score <= self._highest[0][0]) or not self.draw(item):
            return
        heapq.heappush(self._highest, (score, -len(self._highest), item.file))
        if full:
            (self.folder / heapq.heappop(self._highest)[2]).unlink()

    def draw(self, item: Explained) -> bool:
        """Write an image's picture; False if that is not possible."""
        pixels = item.pixels()
        if pixels is None:
            self.undrawn += 1
            return False
        data = io.BytesIO()
        picture = draw(*pixels, item.explanation, item.image, self.shown)
        picture.save(data, format="JPEG", quality=QUALITY)
        try:
            with naming(item.file, self.folder):
                write_bytes(self.folder / item.file, data.getvalue())
        except OSError as error:
            self.faults.append(error)
            return False
        return True


@contextmanager
def writing(
    folder: Path,
    shown: tuple[float, float],
    atoms: int | None = None,
    pictures: int | None = None,
) -> Iterator[ExplanationWriter]:
    """A writer of explanations.jsonl and explained/ in a folder; parameters as its fields."""
    with (folder / EXPLANATIONS).open("w", encoding="ascii", newline="\n") as lines:
        yield ExplanationWriter(folder, shown, lines, atoms, pictures)
