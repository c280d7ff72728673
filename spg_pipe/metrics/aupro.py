"""Regions of a mask, and MVTec's area under the per-region-overlap curve (docs/metrics.md)."""

from __future__ import annotations

import numpy as np

from spg_pipe.metrics.curves import Curve, Groups, thin

LIMITS = (0.05, 0.3, 1.0)  # upper ends of the false-positive rate


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected regions of a mask, diagonal neighbours joined (8-connectivity).

    Parameters
    ----------
    mask : (H, W) any dtype; non-zero is anomalous.

    Returns
    -------
    labels : (H, W) int32, 0 outside regions, 1 … n inside.
    n : number of regions.
    """
    from scipy import ndimage

    labels, n = ndimage.label(mask != 0, structure=np.ones((3, 3), dtype=bool))
    return labels, int(n)


def region_areas(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The area of the region that each anomalous pixel belongs to.

    Parameters
    ----------
    mask : (H, W) any dtype; non-zero is anomalous.

    Returns
    -------
    areas : (A,) int64, pixels; for the A anomalous pixels in row-major order.
    n : number of regions. The sum of 1/areas is n.
    """
    if not mask.any():
        return np.empty(0, dtype=np.int64), 0
    labels, n = label_regions(mask)
    inside = labels[labels > 0]
    return np.bincount(inside)[inside], n


def vanished_regions(original_mask: np.ndarray, resized_mask: np.ndarray) -> int:
    """Count the regions of the original mask that have no pixel left in the resized one.

    A region is still there if the place of one of its pixels' centres is anomalous in the resized
    mask. Regions that merely merge have not vanished.

    Parameters
    ----------
    original_mask : (H, W), non-zero is anomalous.
    resized_mask : (h, w), the same mask at another size.
    """
    marked_rows = np.flatnonzero(original_mask.any(axis=1))
    if not len(marked_rows):
        return 0
    # Regions lie in the defects' bounding box, mostly a small part of the image.
    marked_columns = np.flatnonzero(original_mask.any(axis=0))
    top, left = marked_rows[0], marked_columns[0]
    box = original_mask[top : marked_rows[-1] + 1, left : marked_columns[-1] + 1]
    labels, n = label_regions(box)
    rows, columns = np.nonzero(labels)
    region = labels[rows, columns]
    rows, columns = rows + top, columns + left
    (height, width), (h, w) = original_mask.shape, resized_mask.shape
    # Centres (y + 1/2)·h/H in integers, so that no rounding decides which pixel they fall in.
    landed = resized_mask[(2 * rows + 1) * h // (2 * height), (2 * columns + 1) * w // (2 * width)]
    return n - int(np.count_nonzero(np.bincount(region[landed != 0], minlength=n + 1)))


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
    return area_up_to(_vertices(groups), limit)


def aupro_range(groups: Groups, limit: float, tied: np.ndarray) -> tuple[float, float]:
    """The lowest and highest AUPRO that any order of the pixels inside the groups can give.

    Parameters
    ----------
    groups, limit : as for `aupro`.
    tied : (G,) bool; groups whose pixels all have one score, so that nothing is in doubt.
    """
    if groups.one_class:
        return float("nan"), float("nan")
    fpr, pro = _vertices(groups)
    # A corner before each group's end: normal pixels first runs along the lower edge of the
    # group's box, anomalous pixels first along the upper one; of a tie it falls on its start.
    low_x = np.where(tied, fpr[:-1], fpr[1:])
    high_y = np.where(tied, pro[:-1], pro[1:])
    lowest = Curve(_interleave(fpr, low_x), _interleave(pro, pro[:-1]))
    highest = Curve(_interleave(fpr, fpr[:-1]), _interleave(pro, high_y))
    return area_up_to(lowest, limit), area_up_to(highest, limit)


def pro_curve(groups: Groups) -> Curve:
    """(false-positive rate, mean region overlap), from (0, 0) to (1, 1)."""
    if groups.one_class:
        return Curve(np.empty(0), np.empty(0))
    return thin(_vertices(groups))


def area_up_to(curve: Curve, limit: float) -> float:
    """Trapezoid area under a curve from x = 0 to x = limit, divided by the limit."""
    end = int(np.searchsorted(curve.x, limit, side="right"))
    x, y = curve.x[:end], curve.y[:end]
    if end < len(curve.x):
        step = (limit - x[-1]) / (curve.x[end] - x[-1])
        x = np.append(x, limit)
        y = np.append(y, y[-1] + step * (curve.y[end] - y[-1]))
    return float(np.trapezoid(y, x) / limit)


def _vertices(groups: Groups) -> Curve:
    return Curve(
        np.concatenate([[0.0], groups.fp / groups.n_normal]),
        np.concatenate([[0.0], groups.pro]),
    )


def _interleave(ends: np.ndarray, between: np.ndarray) -> np.ndarray:
    merged = np.empty(len(ends) + len(between))
    merged[0::2], merged[1::2] = ends, between
    return merged
