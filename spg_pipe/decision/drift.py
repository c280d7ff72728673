"""Drift: whether the scores of normal production leave what was calibrated (docs/thresholds.md).

Shiryaev-Roberts sums of conformal test martingales (Vovk et al. 2021, "Retrain or not retrain:
conformal test martingales for change-point detection").
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np

_POWERS = (0.2, 0.5, 0.8)
"""κ of the bets κ·u^(κ − 1): strong on small u, and careful ones."""
ANEW_IMAGES = 100_000
"""After so many normal images all begins anew with the scores of the calibration alone."""


class Drift:
    """Watches the scores of one group of images, in the order of production.

    Each score of an image that is called normal gets its rank u among all such scores so far, those
    of the calibration included; ties are broken at random, from a fixed seed. While production is
    exchangeable with the calibration, ranks are independent and uniform, exactly: both sets are cut
    off at the threshold alike. Bets on small and on large ranks then neither win nor lose in the
    mean, and R_t = (1 + R_{t−1}) · bet has the mean t. Warning at the first R above N and beginning
    anew therefore warns falsely once in N such images in the mean, or less often.

    A server judges for years: after each `ANEW_IMAGES` scores and evidence are those of the
    beginning, so that memory and time are bounded and a slow change does not hide among images
    that have changed already. What is promised holds in each such stretch, so in all together.
    """

    def __init__(self, scores: Sequence[float], threshold: float, images: int) -> None:
        """`scores` of the calibration's normal images, ascending, their threshold, and N.

        A threshold that was found from the scores is to be one of them: given an order statistic
        all below it are exchangeable, given a number beside it they are not.
        """
        self._threshold, self._images = threshold, images
        self._calibration = scores[: bisect_left(scores, threshold)]
        self._scores = list(self._calibration)
        self._random = np.random.default_rng(0)
        self._sums = np.zeros(2 * len(_POWERS))

    @property
    def level(self) -> float:
        """R: the evidence that there is a change; as N is reached, a warning."""
        return float(self._sums.mean())

    def warns(self, score: float) -> bool:
        """Take the next image's score; whether it is time to warn. The evidence then begins anew.

        A score that is not below the threshold does not count.
        """
        if not score < self._threshold:
            return False
        if len(self._scores) - len(self._calibration) >= ANEW_IMAGES:
            self._scores = list(self._calibration)
            self._sums[:] = 0
        rank = smoothed_rank(self._scores, score, 1 - self._random.random())
        self._sums = after_bets(self._sums, rank)
        warning = self.level > self._images
        if warning:
            self._sums[:] = 0
        return warning


def smoothed_rank(scores: list[float], score: float, chance: float) -> float:
    """Insert a score into those so far, ascending, and give its rank among all as a share.

    `chance`, uniform in (0, 1], says which of equal scores it is. Of scores that come in any order
    with the same probability the ranks are independent and uniform in (0, 1].
    """
    below = bisect_left(scores, score)
    insort(scores, score)
    equal = bisect_right(scores, score) - below
    return (below + chance * equal) / len(scores)


def after_bets(sums: np.ndarray, rank: float) -> np.ndarray:
    """R_t of each bet, (6,), from R_{t−1} and a rank in (0, 1]: three on small, three on large."""
    powers = np.array([*_POWERS, *_POWERS])
    shares = np.repeat([rank, max(1 - rank, np.finfo(float).tiny)], len(_POWERS))
    return np.asarray((1 + sums) * powers * shares ** (powers - 1))
