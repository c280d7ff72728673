"""Bootstrap intervals: images drawn anew, with replacement, within each category and class.

Pixels come as a histogram an image, so that a draw is a sum and no map is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from spg_pipe.metrics.logit_keys import score_keys

BINS = 4096
"""Even in the logit between the lowest and the highest score; metrics of pixels are good to about
1e-3, far below any interval."""
ROUNDS = 300
LEVEL = 0.95
METRICS = ("image_auroc", "pixel_auroc", "pixel_ap")
_IMAGES_A_PRODUCT = 512


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
    given, rng = list(categories), np.random.default_rng(seed)
    drawn = [[_rows(one.labels, rng) for one in given] for _ in range(rounds)]
    each = [_metrics(one, rows) for one, rows in zip(given, zip(*drawn, strict=True), strict=True)]
    edges, found = [(1 - LEVEL) / 2, (1 + LEVEL) / 2], {}
    for metric in METRICS:
        values = np.array([of_category[metric] for of_category in each]).reshape(-1, rounds)
        known = ~np.isnan(values)
        count = known.sum(axis=0)
        means = np.where(known, values, 0).sum(axis=0) / np.where(count, count, np.nan)
        found[metric] = Interval(*np.quantile(means, edges))
    return found


def _rows(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts = [np.flatnonzero(labels == label) for label in (0, 1, 255)]
    return np.concatenate([rng.choice(part, len(part)) for part in parts if len(part)])


def _metrics(images: CategoryImages, draws: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Of every draw of a category's images."""
    weights = np.array([np.bincount(rows, minlength=len(images.labels)) for rows in draws], float)
    # Whole numbers below 2^53 stay exact, and only products of floats are fast.
    normal, anomalous = (_summed(weights, part) for part in (images.normal, images.anomalous))
    pairs = list(zip(normal, anomalous, strict=True))
    return {
        "image_auroc": [_image_auroc(images.labels[r], images.scores[r]) for r in draws],
        "pixel_auroc": [_auroc(*pair) for pair in pairs],
        "pixel_ap": [_ap(*pair) for pair in pairs],
    }


def _summed(weights: np.ndarray, histograms: np.ndarray) -> np.ndarray:
    """Histograms (draws, BINS) of all draws; some hundred images at a time bound the memory."""
    found = np.zeros((len(weights), histograms.shape[1]))
    for start in range(0, len(histograms), _IMAGES_A_PRODUCT):
        part = slice(start, start + _IMAGES_A_PRODUCT)
        found += weights[:, part] @ histograms[part].astype(float)
    return found


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
