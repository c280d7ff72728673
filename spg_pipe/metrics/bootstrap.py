"""Bootstrap intervals: images drawn anew, with replacement, within each category and class.

Pixels come as a histogram an image, so that a draw is a sum and no map is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from spg_pipe.metrics.curves import Groups, auroc, average_precision
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

    `pairs` are (map, mask), (H, W) float32 in [0, 1] and bool; all maps lie between `low` and
    `high`.
    """
    first, last = score_keys(np.array([low, high], np.float32)).astype(np.int64)
    width = max(1, int(last - first) // BINS + 1)
    rows = []
    for anomaly_map, mask in pairs:
        keys = score_keys(np.clip(anomaly_map, low, high)).astype(np.int64).ravel()
        bins = (keys - first) // width
        counts = np.bincount(bins + BINS * mask.ravel(), minlength=2 * BINS)
        rows.append(counts.reshape(2, BINS).astype(np.int32))
    both = np.stack(rows) if rows else np.zeros((0, 2, BINS), np.int32)
    return both[:, 0], both[:, 1]


def intervals(
    categories: Iterable[CategoryImages], rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of the means over categories of `METRICS`."""
    given, rng = list(categories), np.random.default_rng(seed)
    draws = [[_rows(images.labels, rng) for images in given] for _ in range(rounds)]
    each = list(map(_metrics, given, zip(*draws, strict=True)))
    edges, result = [(1 - LEVEL) / 2, (1 + LEVEL) / 2], {}
    for metric in METRICS:
        values = np.array([of_category[metric] for of_category in each]).reshape(-1, rounds)
        known = ~np.isnan(values)
        count = known.sum(axis=0)
        means = np.where(known, values, 0).sum(axis=0) / np.where(count, count, np.nan)
        result[metric] = Interval(*np.quantile(means, edges))
    return result


def _rows(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    parts = [np.flatnonzero(labels == label) for label in (0, 1, 255)]
    return np.concatenate([rng.choice(part, len(part)) for part in parts if len(part)])


def _metrics(images: CategoryImages, draws: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Of every draw of a category's images."""
    weights = np.array([np.bincount(rows, minlength=len(images.labels)) for rows in draws], float)
    distinct, place = np.unique(images.scores, return_inverse=True)
    score = np.eye(len(distinct))[place]  # an image is a histogram, too: of one score
    by_label = [score * (images.labels == label)[:, None] for label in (0, 1)]
    of_images = _drawn(weights, *by_label)
    of_pixels = _drawn(weights, images.normal, images.anomalous)
    return {
        "image_auroc": [auroc(groups) for groups in of_images],
        "pixel_auroc": [auroc(groups) for groups in of_pixels],
        "pixel_ap": [average_precision(groups) for groups in of_pixels],
    }


def _drawn(weights: np.ndarray, normal: np.ndarray, anomalous: np.ndarray) -> list[Groups]:
    """What each draw holds, by score; some hundred images at a time bound the memory."""
    counts = np.zeros((2, len(weights), normal.shape[1]))
    for start in range(0, len(normal), _IMAGES_A_PRODUCT):
        part = slice(start, start + _IMAGES_A_PRODUCT)
        # Whole numbers below 2^53 stay exact, and only products of floats are fast.
        counts[0] += weights[:, part] @ normal[part].astype(float)
        counts[1] += weights[:, part] @ anomalous[part].astype(float)
    descending = counts[:, :, ::-1].astype(np.int64)
    unused = np.empty(0)  # no metric here looks at scores or regions
    return [
        Groups(unused, of_normal, of_anomalous, unused)
        for of_normal, of_anomalous in zip(*descending, strict=True)
    ]
