"""From scores to a threshold, and what it guarantees. NumPy and SciPy alone (docs/thresholds.md).

Everywhere a score is anomalous if it is *above* its threshold; n is the number of normal images. A
threshold lies between two scores that were attained, with room to both: another machine or runtime
rounds scores otherwise, and an image of the calibration must not change sides for that.
"""

import math

import numpy as np

from spg_pipe.errors import UnsuitableError, counted
from spg_pipe.metrics.curves import Groups, f1_max

_ROUNDING = 1e-9
"""0.29 · 100 is 28.999999999999996 in floating point."""
ROOM = 0.01
"""How far a threshold is from a score, at most, in standard deviations of all scores."""


def conformal_threshold(scores: np.ndarray, false_alarms: float) -> float:
    """Just above the ⌈(n + 1)(1 − α)⌉-th smallest of the scores of normal images.

    A new normal image is above it with a probability of at most α, over the draw of all n + 1
    images, if these are exchangeable. An `UnsuitableError` if n < ⌈1/α⌉ − 1: no image's score is
    high enough.

    Parameters
    ----------
    scores : (n,) floats
    false_alarms : α in (0, 1).
    """
    n = len(scores)
    above = min(math.floor((n + 1) * false_alarms + _ROUNDING), n)
    if above < 1:
        raise UnsuitableError(
            f"{counted(n, 'normal image')} cannot bound false alarms by {false_alarms:g}: at least "
            f"{math.ceil(1 / false_alarms - _ROUNDING) - 1} are needed. "
            + (f"These allow a rate of {1 / (n + 1):.4g} or more." if n else "")
        )
    return _just_above(scores, n - above)


def tolerance_threshold(scores: np.ndarray, false_alarms: float, confidence: float) -> float:
    """Just above the least of the scores of normal images that is a tolerance bound.

    With probability `confidence` over the draw of these images, which must be independent, the
    false-alarm rate of this very threshold is at most α: that of the k-th smallest of n has, for
    scores without ties, the distribution Beta(n − k + 1, k) (Wilks 1941). An `UnsuitableError` if 1
    − (1 − α)ⁿ < 1 − δ: not even the highest score is such a bound.

    Parameters
    ----------
    scores : (n,) floats
    false_alarms : α in (0, 1).
    confidence : 1 − δ in (0, 1).
    """
    from scipy.special import betainc  # here, as scipy takes half a second

    n = len(scores)
    ranks = np.arange(1, n + 1)
    bounds = np.flatnonzero(betainc(n - ranks + 1, ranks, false_alarms) >= confidence)
    if len(bounds) == 0:
        needed = math.ceil(math.log1p(-confidence) / math.log1p(-false_alarms) - _ROUNDING)
        allowed = 1 - (1 - confidence) ** (1 / n) if n else 1.0
        raise UnsuitableError(
            f"{counted(n, 'normal image')} cannot bound false alarms by {false_alarms:g} with "
            f"confidence {confidence:g}: at least {needed} are needed. "
            + (f"These allow a rate of {allowed:.4g} or more." if n else "")
        )
    return _just_above(scores, int(bounds[0]))


def p_values(normal: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Conformal p-values (1 + number of normal images that score as high) / (n + 1).

    That of a new normal image is at most p with a probability of at most p, for every p. A score
    that is above the conformal threshold of α has a p-value of at most α; one that is not has a
    greater one, unless it lies within the threshold's `ROOM`.

    Parameters
    ----------
    normal : (n,) floats, ascending
    scores : (m,) floats

    Returns
    -------
    (m,) float64 in [1 / (n + 1), 1]
    """
    as_high = len(normal) - np.searchsorted(normal, scores, side="left")
    return np.asarray((1 + as_high) / (len(normal) + 1), dtype=np.float64)


def benjamini_hochberg(p: np.ndarray, rate: float) -> np.ndarray:
    """Which images of a batch are anomalous, so that the false-discovery rate is at most `rate`.

    That is the expected share of normal images among those called anomalous. It holds for
    `p_values` that share their normal images (Bates et al. 2023, "Testing for outliers with
    conformal p-values", theorem 2), and for batches of several groups with images of their own.

    Parameters
    ----------
    p : (m,) floats in [0, 1]
    rate : q in (0, 1).

    Returns
    -------
    (m,) bool
    """
    if len(p) == 0:
        return np.zeros(0, dtype=bool)
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p, method="bh") <= rate + _ROUNDING)


def groups_of(normal: np.ndarray, anomalous: np.ndarray) -> Groups:
    """The scores of labelled images, (n,) and (m,) floats, as the metrics take them."""
    score = np.unique(np.concatenate([normal, anomalous]))[::-1]
    n, m = (
        np.bincount(np.searchsorted(-score, -each), minlength=len(score))
        for each in (normal, anomalous)
    )
    return Groups(score, n, m, overlap=np.zeros(len(score)))


def f1_threshold(labelled: Groups, *, pixels: bool = False) -> float:
    """Just below the lowest score that the highest F1 calls anomalous.

    `labelled` has both kinds. Of pixels a group may span several scores, so the threshold takes no
    room: it is the next number.
    """
    return _just_below(labelled, f1_max(labelled)[1], pixels=pixels)


def recall_threshold(labelled: Groups, recall: float, *, pixels: bool = False) -> float:
    """The highest threshold with this share of anomalous images, or pixels, above it.

    `labelled` has something anomalous, `recall` is in (0, 1], `pixels` as for `f1_threshold`.
    """
    needed = math.ceil(recall * labelled.n_anomalous - _ROUNDING)
    score = labelled.score[int(np.searchsorted(labelled.tp, needed))]
    return _just_below(labelled, score, pixels=pixels)


def _just_above(scores: np.ndarray, rank: int) -> float:
    """Halfway from the score of a rank, from 0, to the next higher one, within `ROOM`."""
    ordered = np.sort(scores).astype(np.float64)
    return _beside(ordered[rank], ordered[ordered > ordered[rank]][:1], float(ordered.std()))


def _just_below(labelled: Groups, score: float, *, pixels: bool) -> float:
    """Halfway to the next lower score, within `ROOM`."""
    if pixels:  # the next smaller number of the type that a map is compared in
        kind = labelled.score.dtype.type
        return float(np.nextafter(kind(score), kind(-np.inf)))
    counts = labelled.normal + labelled.anomalous
    deviation = math.sqrt(np.cov(labelled.score, fweights=counts, ddof=0))
    lower = labelled.score[labelled.score < score][:1]
    below = _beside(score, lower, -deviation)
    return below if below < score else float(np.nextafter(score, -np.inf))


def _beside(score: float, other: np.ndarray, deviation: float) -> float:
    """From a score towards another one, (1,) or (0,) if there is none, and never as far as that."""
    room = ROOM * deviation
    if len(other) == 0:
        return float(score + room)
    step = (other[0] - score) / 2
    beside = score + (step if abs(step) < abs(room) else room)
    return float(beside if beside != other[0] else score)
