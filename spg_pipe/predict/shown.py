"""Which images the page of `predict --report` shows: those with the highest scores."""

import hashlib
import heapq
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from spg_pipe.datasets.walk import REPORT

MOST_SHOWN = 2000
"""A browser holds so many pictures, and a person looks at fewer."""
PAGES = tuple(f"{REPORT}/{name}" for name in ("index.html", "report.css", "report.js"))
ENDINGS = (".jpg", "-map.png", "-mask.png", ".html")
"""Of the files of an image: photograph, map, outlines of its regions if it has any, page."""


def stem_of(name: str) -> str:
    """How the files of an image on the page begin; the same in every run."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def files_of(name: str, endings: Sequence[str] = ENDINGS) -> set[str]:
    """All files that the page may have of an image, or some, relative to the output folder."""
    return {f"{REPORT}/images/{stem_of(name)}{ending}" for ending in endings}


@dataclass
class Shown:
    """The images with the highest scores so far, of equal ones the first; asked from any thread.

    Pictures are drawn while images go by, of those that are among the highest at that time: none
    that is in the end was refused before.
    """

    most: int = MOST_SHOWN
    _highest: list[tuple[float, int, str]] = field(default_factory=list)
    _count: int = 0
    _lock: Lock = field(default_factory=Lock)

    def wants(self, score: float) -> bool:
        """Whether an image that comes next would be shown."""
        with self._lock:
            return len(self._highest) < self.most or score > self._highest[0][0]

    def add(self, name: str, score: float) -> str | None:
        """Count an image, in the order of the images; the name that is shown no more, if any."""
        with self._lock:
            self._count += 1
            heapq.heappush(self._highest, (score, -self._count, name))
            if len(self._highest) <= self.most:
                return None
            gone = heapq.heappop(self._highest)[2]
            # A name can come twice on standard input.
            return None if any(gone == other for _, _, other in self._highest) else gone

    def names(self) -> set[str]:
        """Of the images that are shown."""
        with self._lock:
            return {name for _, _, name in self._highest}
