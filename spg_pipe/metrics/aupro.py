"""MVTec's area under the per-region-overlap curve (docs/metrics.md)."""

from __future__ import annotations

import numpy as np

from spg_pipe.metrics.curves import Curve, Groups

LIMITS = (0.05, 0.3, 1.0)  # upper ends of the false-positive rate


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
    return area_up_to(vertices(groups), limit)


def aupro_range(groups: Groups, limit: float, tied: np.ndarray) -> tuple[float, float]:
    """The lowest and highest AUPRO that any order of the pixels inside the groups can give.

    Parameters
    ----------
    groups, limit : as for `aupro`.
    tied : (G,) bool; groups whose pixels all have one score, so that nothing is in doubt.
    """
    if groups.one_class:
        return float("nan"), float("nan")
    fpr, pro = vertices(groups)
    # A corner before each group's end: normal pixels first runs along the lower edge of the
    # group's box, anomalous pixels first along the upper one; of a tie it falls on its start.
    low_x = np.where(tied, fpr[:-1], fpr[1:])
    high_y = np.where(tied, pro[:-1], pro[1:])
    lowest = Curve(_interleave(fpr, low_x), _interleave(pro, pro[:-1]))
    highest = Curve(_interleave(fpr, fpr[:-1]), _interleave(pro, high_y))
    return area_up_to(lowest, limit), area_up_to(highest, limit)


def area_up_to(curve: Curve, limit: float) -> float:
    """Trapezoid area under a curve from x = 0 to x = limit, divided by the limit."""
    end = int(np.searchsorted(curve.x, limit, side="right"))
    x, y = curve.x[:end], curve.y[:end]
    if end < len(curve.x):
        step = (limit - x[-1]) / (curve.x[end] - x[-1])
        x = np.append(x, limit)
        y = np.append(y, y[-1] + step * (curve.y[end] - y[-1]))
    return float(np.trapezoid(y, x) / limit)


def vertices(groups: Groups) -> Curve:
    """The PRO curve: (false-positive rate, mean region overlap), from (0, 0) to (1, 1)."""
    return Curve(
        np.concatenate([[0.0], groups.fp / groups.n_normal]),
        np.concatenate([[0.0], groups.pro]),
    )


def _interleave(ends: np.ndarray, between: np.ndarray) -> np.ndarray:
    merged = np.empty(len(ends) + len(between))
    merged[0::2], merged[1::2] = ends, between
    return merged
