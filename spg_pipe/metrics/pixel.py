"""The pixel metrics of a category as one value, and how far grouping can have moved them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from operator import add

import numpy as np

from spg_pipe.metrics import curves
from spg_pipe.metrics.curves import Curve, Groups

MAX_ERROR = 1e-4  # a histogram that cannot promise this is replaced by a sort (docs/metrics.md)


@dataclass(frozen=True)
class Counts:
    """What went into a category's pixel metrics."""

    images: int = 0
    pixels: int = 0
    anomalous_pixels: int = 0
    regions: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel metrics over all pixels of a category's images together.

    Every metric is in [0, 1], or NaN where it is undefined: a category without anomalous or
    without normal pixels.
    """

    protocol: str  # "exact" or "spg" (docs/metrics.md)
    accumulator: str  # the one that gave the numbers: "sort" or "histogram"
    counts: Counts
    auroc: float
    ap: float
    f1_max: float
    f1_threshold: float  # exact: positive = score >= threshold; spg: score > threshold
    aupro: Mapping[float, float] = field(default_factory=dict)  # by limit; empty in protocol spg
    pro: Mapping[str, float] = field(default_factory=dict)  # "fast", "slow"; empty in exact
    # By metric: "auroc", "ap", "f1_max", "aupro_0.05", …; empty: nothing was rounded.
    error_bounds: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict, repr=False)  # "roc", "pr", "pro"

    @property
    def error_bound(self) -> float:
        """The largest difference that any metric can have from the exact one; 0 for a sort."""
        return max(self.error_bounds.values(), default=0.0)

    @property
    def needs_fallback(self) -> bool:
        """Whether the error bound exceeds 1e-4, so that a sort must be made instead."""
        return self.error_bound > MAX_ERROR


def exact_metrics(groups: Groups, counts: Counts, accumulator: str) -> PixelMetrics:
    """Every metric of protocol `exact` from pixels grouped by equal score."""
    f1, threshold = curves.f1_max(groups)
    return PixelMetrics(
        protocol="exact",
        accumulator=accumulator,
        counts=counts,
        auroc=curves.auroc(groups),
        ap=curves.average_precision(groups),
        f1_max=f1,
        f1_threshold=threshold,
        aupro={limit: curves.aupro(groups, limit) for limit in curves.LIMITS},
        curves=_plot_curves(groups),
    )


def _plot_curves(groups: Groups) -> dict[str, Curve]:
    """ROC, precision-recall and PRO curves, at most 500 points each; empty with one class only."""
    if groups.one_class:
        return dict.fromkeys(("roc", "pr", "pro"), Curve(np.empty(0), np.empty(0)))
    fpr, pro = curves.pro_curve(groups)
    recall = groups.tp / groups.n_anomalous
    hit = groups.anomalous > 0  # precision at every threshold that adds an anomalous pixel
    precision = groups.tp[hit] / (groups.tp[hit] + groups.fp[hit])
    return {
        "roc": curves.thin(Curve(fpr, np.concatenate([[0.0], recall]))),
        "pr": curves.thin(Curve(recall[hit], precision)),
        "pro": curves.thin(Curve(fpr, pro)),
    }


def grouped_metrics(
    groups: Groups, counts: Counts, accumulator: str, tied: np.ndarray
) -> PixelMetrics:
    """Metrics of protocol `exact` from groups that hide an order of scores, with error bounds.

    For each metric the pixels of every group are put in the order that is best, and in the one
    that is worst, for it; whatever the true scores in a group are, ties included, the exact value
    lies between. The bound is the distance from the stated value to the farther of the two. AP is
    stated as their middle, the others as if each group were a tie.

    `tied`, (G,) bool, marks groups whose pixels all have one score: nothing is in doubt there.
    """
    metrics = exact_metrics(groups, counts, accumulator)
    if groups.one_class:
        return metrics
    # What the best order puts above a group's anomalous pixels: none of its own normal ones.
    fp_best = np.where(tied, groups.fp, groups.fp - groups.normal)
    low, high = _ap_range(groups, fp_best, tied)
    pairs = np.dot((groups.fp - fp_best).astype(np.float64), groups.anomalous)
    f1_best = (2 * groups.tp / (groups.n_anomalous + groups.tp + fp_best)).max()
    bounds = {
        # A pair of pixels in one group counts 1/2 where it is 0 or 1.
        "auroc": float(pairs / 2 / groups.n_normal / groups.n_anomalous),
        "ap": (high - low) / 2,
        # A group's end is a real threshold, so grouping can only miss a higher F1 inside.
        "f1_max": max(float(f1_best) - metrics.f1_max, 0.0),
    }
    for limit, value in metrics.aupro.items():
        least, most = curves.aupro_range(groups, limit, tied)
        bounds[f"aupro_{limit}"] = max(value - least, most - value, 0.0)
    return replace(metrics, ap=(low + high) / 2, error_bounds=bounds)


def _ap_range(groups: Groups, fp_best: np.ndarray, tied: np.ndarray) -> tuple[float, float]:
    hit = groups.anomalous > 0
    tp, fp, inside = groups.tp[hit], groups.fp[hit], groups.anomalous[hit]
    # Best: the anomalous pixels tie, above all normal ones of their group.
    high = inside * (tp / (tp + fp_best[hit]))
    # Worst: all different, below the normal ones: the sum over j = 1 … inside of
    # (above + j)/(above + fp + j), where 1/(m + j) summed is at most the midpoint integral.
    low = inside - fp * np.log1p(inside / (tp - inside + fp + 0.5))
    low = np.where(tied[hit], high, low)
    return float(low.sum() / groups.n_anomalous), float(high.sum() / groups.n_anomalous)
