"""A run's images from the highest score down, and what its scores can and cannot say."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spg_pipe.errors import one_line

_FEWEST = 10
"""Images of a run of which sides of zero say something."""
_NEARLY_ALL = 0.95


class Ranked(NamedTuple):
    """An image's score, and where it stands among those of the goods, if there are such."""

    path: str
    score: float
    deviation: float | None = None
    normals_above: int | None = None


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


def ranking(highest: Sequence[Ranked], images: int, goods: int, *, ranks: bool) -> list[str]:
    """Lines for people, the highest score first.

    Beside a score stands what is known of it: how many standard deviations of the goods it lies
    above their mean, and how many of them reach it; else perhaps its rank.

    Parameters
    ----------
    highest : sequence of Ranked
        From the highest score down.
    images : int
        Of the run.
    goods : int
        How many normal images have leave-one-out scores.
    ranks : bool
        Zero says nothing (`one_sided`).
    """
    lines = []
    for number, (path, score, deviation, above) in enumerate(highest, start=1):
        facts = [f"{score:.4f}"]
        if deviation is not None:
            facts += [f"{deviation:+.1f} deviations", f"{above} of {goods} goods above"]
        elif ranks:
            facts.insert(0, f"{number} of {images:,}")
        lines.append(one_line("  ".join([*facts, path])))
    return lines
