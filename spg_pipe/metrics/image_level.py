"""Image metrics, by scikit-learn's definitions (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.metrics.published import one_score_below

LABEL_NORMAL, LABEL_ANOMALOUS, LABEL_UNKNOWN = 0, 1, 255


@dataclass(frozen=True)
class ImageMetrics:
    """Image metrics of a category; NaN unless there are normal and anomalous images."""

    auroc: float
    ap: float  # step-wise average precision
    f1_max: float
    f1_threshold: float  # exact: anomalous = score >= threshold; spg: score > threshold
    normal: int
    anomalous: int
    unknown: int  # images without a label, left out


def image_metrics(labels: np.ndarray, scores: np.ndarray, protocol: str = "exact") -> ImageMetrics:
    """AUROC, AP and F1-max of image scores.

    An `SpgError` if lengths differ, a label is another, or a score is not finite.

    Parameters
    ----------
    labels : (I,) integers: 0 normal, 1 anomalous, 255 unknown (left out and counted).
    scores : (I,) floats, finite where the label is known; any range.
    protocol : "spg" gives the F1 threshold one distinct score lower, for score > threshold.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise SpgError(
            f"image metrics: {labels.shape} labels and {scores.shape} scores; expected one of "
            "each per image. Score the dataset again (spg-pipe score)."
        )
    strange = np.setdiff1d(labels, [LABEL_NORMAL, LABEL_ANOMALOUS, LABEL_UNKNOWN])
    if len(strange):
        raise SpgError(
            f"image metrics: label {strange[0]}; expected 0 (normal), 1 (anomalous) or 255 "
            "(unknown). Prepare the dataset again (spg-pipe prepare)."
        )
    known = labels != LABEL_UNKNOWN
    truth, score = labels[known], scores[known]
    if not np.isfinite(score).all():
        raise SpgError(
            f"image metrics: {(~np.isfinite(score)).sum()} of {len(score)} image scores are NaN "
            "or infinite. Look for NaN in the detector (spg-pipe inspect)."
        )
    n_anomalous = int(truth.sum())
    n_normal = len(truth) - n_anomalous
    both = n_normal and n_anomalous
    values = _defined(truth, score, protocol) if both else (float("nan"),) * 4
    return ImageMetrics(*values, n_normal, n_anomalous, int((~known).sum()))


def _defined(
    truth: np.ndarray, scores: np.ndarray, protocol: str
) -> tuple[float, float, float, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, thresholds = precision_recall_curve(truth, scores)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    best = int(np.argmax(f1[:-1]))
    threshold = float(thresholds[best])
    if protocol == "spg":
        threshold = one_score_below(threshold, np.sort(scores))
    return (
        float(roc_auc_score(truth, scores)),
        float(average_precision_score(truth, scores)),
        float(f1[best]),
        threshold,
    )
