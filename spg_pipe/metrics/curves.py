"""Threshold metrics from pixel counts per score group: AUROC, AP, F1-max, and curves to plot.

Both accumulators end in the same value: `Groups`, the pixels that share a score (or a narrow range
of scores) counted from the highest score down. Everything else is cumulative sums over groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

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


def thin(curve: Curve) -> Curve:
    """At most 500 of the curve's own points, spaced evenly along it; both ends stay."""
    if len(curve.x) <= MAX_CURVE_POINTS:
        return curve
    along = np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y)))
    wanted = np.linspace(0.0, along[-1], MAX_CURVE_POINTS)
    keep = np.unique(np.minimum(np.searchsorted(along, wanted), len(along) - 1) + 1)
    keep[0], keep[-1] = 0, len(curve.x) - 1
    return Curve(curve.x[keep], curve.y[keep])
