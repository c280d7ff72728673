"""Threshold metrics from pixel counts per score group: AUROC, AP, F1-max, AUPRO, curves to plot.

Both accumulators end in the same value: `Groups`, the pixels that share a score (or a narrow range
of scores) counted from the highest score down. Everything else is cumulative sums over groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

LIMITS = (0.05, 0.3, 1.0)  # of AUPRO: upper ends of the false-positive rate
MAX_CURVE_POINTS = 500


class Curve(NamedTuple):
    """A polyline to plot; x does not fall."""

    x: np.ndarray  # (P,) float64
    y: np.ndarray  # (P,) float64


@dataclass(frozen=True)
class Groups:
    """Pixels by score, from the highest group down; G groups.

    A group that holds both kinds of pixel is one tie: its pixels enter together, and the curves
    run straight across it. A group of normal pixels only may span many scores: no curve bends
    there.
    """

    score: np.ndarray  # (G,) float32; positive = pixel's score >= this, to include the group
    normal: np.ndarray  # (G,) int64, normal pixels in the group
    anomalous: np.ndarray  # (G,) int64
    overlap: np.ndarray  # (G,) float64, sum over the group's anomalous pixels of 1/area of region

    @cached_property
    def fp(self) -> np.ndarray:
        """(G,) int64: normal pixels in this group and those above it."""
        return np.cumsum(self.normal)

    @cached_property
    def tp(self) -> np.ndarray:
        """(G,) int64: anomalous pixels in this group and those above it."""
        return np.cumsum(self.anomalous)

    @cached_property
    def pro(self) -> np.ndarray:
        """(G,) float64 in [0, 1]: mean overlap of the regions; NaN where there is no region."""
        total = np.cumsum(self.overlap)
        # Dividing by the last sum (the number of regions, up to rounding) makes the curve end at 1.
        return total / total[-1] if self.n_anomalous else np.full(len(total), np.nan)

    @property
    def n_normal(self) -> int:
        """All normal pixels."""
        return int(self.normal.sum())

    @property
    def n_anomalous(self) -> int:
        """All anomalous pixels."""
        return int(self.anomalous.sum())

    @property
    def one_class(self) -> bool:
        """Whether normal or anomalous pixels are missing, so that nothing is defined."""
        return self.n_normal == 0 or self.n_anomalous == 0


def auroc(groups: Groups) -> float:
    """Area under the ROC curve: P(anomalous > normal) + P(equal)/2. NaN with one class only."""
    if groups.one_class:
        return float("nan")
    above = groups.tp - groups.anomalous
    wins = np.dot(groups.normal.astype(np.float64), above + groups.anomalous / 2)
    return float(wins / groups.n_normal / groups.n_anomalous)


def average_precision(groups: Groups) -> float:
    """Step-wise average precision: sum of (change of recall) * precision. NaN with one class only.

    Never the trapezoid under the precision-recall curve: a constant detector scores the
    prevalence, not 0.5.
    """
    if groups.one_class:
        return float("nan")
    hit = groups.anomalous > 0
    tp, fp = groups.tp[hit], groups.fp[hit]
    return float(np.dot(groups.anomalous[hit], tp / (tp + fp)) / groups.n_anomalous)


def f1_max(groups: Groups) -> tuple[float, float]:
    """The highest F1 over all thresholds and its threshold (positive = score >= threshold).

    Of equal maxima the lowest threshold, as `argmax` over scikit-learn's
    `precision_recall_curve` finds it. NaN, NaN with one class only.
    """
    if groups.one_class:
        return float("nan"), float("nan")
    # 2·TP over an integer: equal rationals stay equal floats, so ties are real ties.
    f1 = 2 * groups.tp / (groups.n_anomalous + groups.tp + groups.fp)
    f1[groups.anomalous == 0] = -1.0  # a threshold that only adds false positives
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return float(f1[best]), float(groups.score[best])


def aupro(groups: Groups, limit: float) -> float:
    """Area under the curve of mean region overlap over false-positive rate, up to a limit.

    MVTec's definition: every distinct score is a threshold, each region weighs the same, the
    false-positive rate is over all normal pixels; the curve starts at (0, 0), is interpolated
    linearly at the limit, and the area is divided by the limit.

    Parameters
    ----------
    groups : the category's pixels by score.
    limit : upper end of the false-positive rate, in (0, 1].

    Returns
    -------
    Area in [0, 1]; NaN without a region or without a normal pixel.
    """
    if groups.one_class:
        return float("nan")
    return _area_up_to(pro_curve(groups), limit)


def aupro_range(groups: Groups, limit: float, tied: np.ndarray) -> tuple[float, float]:
    """The lowest and highest AUPRO that any order of the pixels inside the groups can give.

    `tied` (G,): groups whose pixels all have one score, so that nothing is in doubt.
    """
    if groups.one_class:
        return float("nan"), float("nan")
    fpr, pro = pro_curve(groups)
    # A corner before each group's end: normal pixels first runs along the lower edge of the
    # group's box, anomalous pixels first along the upper one; of a tie it falls on its start.
    low_x = np.where(tied, fpr[:-1], fpr[1:])
    high_y = np.where(tied, pro[:-1], pro[1:])
    lowest = Curve(_interleave(fpr, low_x), _interleave(pro, pro[:-1]))
    highest = Curve(_interleave(fpr, fpr[:-1]), _interleave(pro, high_y))
    return _area_up_to(lowest, limit), _area_up_to(highest, limit)


def _area_up_to(curve: Curve, limit: float) -> float:
    """Trapezoid area under a curve from x = 0 to x = limit, divided by the limit."""
    end = int(np.searchsorted(curve.x, limit, side="right"))
    x, y = curve.x[:end], curve.y[:end]
    if end < len(curve.x):
        step = (limit - x[-1]) / (curve.x[end] - x[-1])
        x = np.append(x, limit)
        y = np.append(y, y[-1] + step * (curve.y[end] - y[-1]))
    return float(np.trapezoid(y, x) / limit)


def pro_curve(groups: Groups) -> Curve:
    """The PRO curve: (false-positive rate, mean region overlap), from (0, 0) to (1, 1)."""
    fpr = groups.fp / groups.n_normal
    return Curve(np.concatenate([[0.0], fpr]), np.concatenate([[0.0], groups.pro]))


def _interleave(ends: np.ndarray, between: np.ndarray) -> np.ndarray:
    merged = np.empty(len(ends) + len(between))
    merged[0::2], merged[1::2] = ends, between
    return merged


def thin(curve: Curve) -> Curve:
    """At most 500 of the curve's own points, spaced evenly along it; both ends stay."""
    if len(curve.x) <= MAX_CURVE_POINTS:
        return curve
    along = np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y)))
    wanted = np.linspace(0.0, along[-1], MAX_CURVE_POINTS)
    keep = np.unique(np.minimum(np.searchsorted(along, wanted), len(along) - 1) + 1)
    keep[0], keep[-1] = 0, len(curve.x) - 1
    return Curve(curve.x[keep], curve.y[keep])
