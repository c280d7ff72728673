"""Bootstrap intervals: images drawn anew, with replacement, within each category and class.

Pixels come as a histogram an image, so that a draw is a sum and no map is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from spg_pipe.metrics.logit_keys import score_keys

BINS = 4096
"""Even in the logit between the lowest and the highest score; metrics of pixels are good to about
1e-3, far below any interval."""
ROUNDS = 300
LEVEL = 0.95
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap")


class Interval(NamedTuple):
    """Where the middle 95 % of the draws lie; NaN where the metric is undefined."""

    low: float
    high: float


class CategoryImages(NamedTuple):
    """What the bootstrap needs of a category's images."""

    labels: np.ndarray
    """(n,) int: 0, 1 or 255."""
    scores: np.ndarray
    """(n,) float"""
    normal: np.ndarray
    """(n, BINS) int32: normal pixels by score; zeros where the mask is unknown."""
    anomalous: np.ndarray
    """(n, BINS) int32"""


def pixel_histograms(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """Normal and anomalous pixels by score, (n, BINS) each.

    Parameters
    ----------
    pairs : of (map, mask), (H, W) float32 in [0, 1] and bool
    low, high : bounds of all maps' values
    """
    first, last = score_keys(np.array([low, high], np.float32)).astype(np.int64)
    width = max(1, int(last - first) // BINS + 1)
    rows = []
    for anomaly_map, mask in pairs:
        keys = score_keys(np.clip(anomaly_map, low, high)).astype(np.int64).ravel()
        bins = (keys - first) // width
        both = np.bincount(bins + BINS * mask.ravel(), minlength=2 * BINS)
        rows.append(both.reshape(2, BINS).astype(np.int32))
    found = np.stack(rows) if rows else np.zeros((0, 2, BINS), np.int32)
    return found[:, 0], found[:, 1]


def intervals(
    categories: Iterable[CategoryImages], rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of the means over categories of `METRICS`.

    Returns
    -------
    dict of metric → Interval
    """
    rng = np.random.default_rng(seed)
    given = list(categories)
    draws: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for _ in range(rounds):
        each = [_drawn(one, rng) for one in given]
        for metric in METRICS:
            values = [values[metric] for values in each if not np.isnan(values[metric])]
            draws[metric].append(float(np.mean(values)) if values else np.nan)
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {metric: Interval(*np.quantile(values, edges)) for metric, values in draws.items()}


def _drawn(images: CategoryImages, rng: np.random.Generator) -> dict[str, float]:
    parts = [np.flatnonzero(images.labels == label) for label in (0, 1, 255)]
    rows = np.concatenate([rng.choice(part, len(part)) for part in parts if len(part)])
    weights = np.bincount(rows, minlength=len(images.labels))
    normal, anomalous = weights @ images.normal, weights @ images.anomalous
    return {
        "image_auroc": _image_auroc(images.labels[rows], images.scores[rows]),
        "pixel_auroc": _auroc(normal, anomalous),
        "pixel_ap": _ap(normal, anomalous),
    }


def _image_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    from scipy.stats import rankdata

    known = labels != 255
    ranks, positive = rankdata(scores[known]), labels[known] == 1
    p, n = int(positive.sum()), int((~positive).sum())
    return (ranks[positive].sum() - p * (p + 1) / 2) / (p * n) if p and n else np.nan


def _auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Ties within a bin count half."""
    if not normal.sum() or not anomalous.sum():
        return np.nan
    below = np.cumsum(normal) - normal / 2
    return float((anomalous @ below) / (normal.sum() * anomalous.sum()))


def _ap(normal: np.ndarray, anomalous: np.ndarray) -> float:
    if not normal.sum() or not anomalous.sum():
        return np.nan
    hits, all_ = np.cumsum(anomalous[::-1]), np.cumsum((normal + anomalous)[::-1])
    return float((anomalous[::-1] @ (hits / np.maximum(all_, 1))) / anomalous.sum())
