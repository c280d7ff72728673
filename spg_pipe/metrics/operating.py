"""Precision, recall and false-positive rate at a threshold that was set elsewhere."""

from __future__ import annotations

import math

import numpy as np

FIGURES = ("precision", "recall", "fpr")


def above(values: np.ndarray, threshold: float) -> np.ndarray:
    """Which scores or pixels, of any shape, are anomalous: bool. One rule for all results."""
    if values.dtype != np.float32:
        return values > threshold
    limit = np.float32(threshold)  # NumPy would compare with that, and not with the threshold
    if float(limit) > threshold:  # the next float32 below gives the answers of the threshold
        limit = np.nextafter(limit, np.float32(-np.inf))
    return values > limit


class AtThreshold:
    """Counts of images or pixels at one threshold, which come in pieces; positive = above it."""

    def __init__(self, threshold: float | None) -> None:
        """Without a threshold every figure is NaN."""
        self.threshold = threshold
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._found = self._alarms = self._anomalous = self._normal = 0

    def add(self, scores: np.ndarray, anomalous: np.ndarray) -> None:
        """Count scores of any shape; `anomalous` indexes them flattened, or is a mask of them."""
        if self.threshold is None:
            return
        positive = above(np.ravel(scores), self.threshold)
        hits = positive[anomalous]
        self._found += int(hits.sum())
        self._alarms += int(positive.sum()) - int(hits.sum())
        self._anomalous += len(hits)
        self._normal += len(positive) - len(hits)

    def figures(self, what: str) -> dict[str, float]:
        """`image_precision`, `image_recall` and `image_fpr` for `what` "image"; NaN of nothing."""
        pairs = (
            (self._found, self._found + self._alarms),
            (self._found, self._anomalous),
            (self._alarms, self._normal),
        )
        return {
            f"{what}_{name}": part / whole if whole else math.nan
            for name, (part, whole) in zip(FIGURES, pairs, strict=True)
        }
