"""A run's images from the highest score down, and what its scores can and cannot say."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spg_pipe.datasets.walk import SCORES
from spg_pipe.errors import counted, one_line
from spg_pipe.predict.items import Item
from spg_pipe.predict.result import Failure, Line, Result

RANKED = 20
"""Images that are named at the end, those with the highest scores."""
_FEWEST = 10
"""Images of a run of which sides of zero say something."""
_NEARLY_ALL = 0.95


def one_sided(scores: Sequence[float]) -> str:
    """What to say if nearly all scores lie on one side of the auxiliary set's zero; else nothing.

    Of fewer than 10 images nothing is said.
    """
    values = np.asarray(scores, dtype=float)
    above = int((values > 0).sum())
    most, side = max((above, "above"), (len(values) - above, "not above"))
    if len(values) < _FEWEST or most < _NEARLY_ALL * len(values):
        return ""
    return (
        f"{most} of {len(values)} scores are {side} 0, where an image of the detector's auxiliary "
        "set would be as likely good as bad. On this product 0 says nothing: the images are only "
        "ranked. Give a few good ones (--normals), or calibrate on them, for scores that mean "
        "something (docs/own-goods.md)."
    )


def ranking(highest: Sequence[Result], images: int, goods: int, *, ranks: bool) -> list[str]:
    """Lines for people, the highest score first.

    Beside a score stands what is known of it: how many standard deviations of the goods it lies
    above their mean, and how many of them reach it; else perhaps its rank; and what was decided.
    So many `images` the run has, so many `goods` have leave-one-out scores; with `ranks` zero says
    nothing (`one_sided`).
    """
    lines = []
    for number, result in enumerate(highest, start=1):
        facts = [f"{result.score:.4f}"]
        if result.deviation is not None:
            above = f"{result.normals_above} of {goods} goods above"
            facts += [f"{result.deviation:+.1f} deviations", above]
        elif ranks:
            facts.insert(0, f"{number} of {images:,}")
        if result.decision is not None:
            facts.append(result.decision)
        lines.append(one_line("  ".join([*facts, result.path])))
    return lines


class Top(NamedTuple):
    """An image with one of the highest scores; of equal ones the first is the higher."""

    score: float
    before: int
    item: Item | None
    """Where its picture is drawn at the end: a frame takes megabytes."""
    result: Result


@dataclass
class Summary:
    """What is said at the end, kept while images go by."""

    keep: int = RANKED
    """So many of the highest scores."""
    drawn: bool = False
    """Keep their images, too."""
    images: int = 0
    bad: int = 0
    known: list[str] = field(default_factory=list)
    """Images that are normal ones of the bank."""
    scores: list[float] = field(default_factory=list)
    _highest: list[Top] = field(default_factory=list)

    def add(self, item: Item, result: Line) -> None:
        """Count an image."""
        self.images += 1
        if isinstance(result, Failure):
            self.bad += 1
            return
        if result.among_normals:
            self.known.append(result.path)
        self.scores.append(result.score)
        heapq.heappush(
            self._highest, Top(result.score, -self.images, item if self.drawn else None, result)
        )
        if len(self._highest) > self.keep:
            heapq.heappop(self._highest)

    def top(self, most: int) -> list[Top]:
        """From the highest score down."""
        return sorted(self._highest, reverse=True)[:most]

    def text(self, out: Path, goods: int, *, ranks: bool) -> str:
        """The ranking, and how many there are; `goods` and `ranks` as for `ranking`."""
        highest = [top.result for top in self.top(RANKED)]
        ranked = ranking(highest, len(self.scores), goods, ranks=ranks)
        if more := len(self.scores) - len(ranked):
            ranked.append(f"… and {more:,} more in {out / SCORES}")
        bad = f", {counted(self.bad, 'bad file')} left out" if self.bad else ""
        judged = f"{counted(len(self.scores), 'image')} judged{bad} → {out / SCORES}"
        return "\n".join([*ranked, judged])
