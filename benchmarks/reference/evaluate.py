"""Scoring and metrics of the published recipe written out literally (docs/method.md §4).

Each image goes through the dense SAE and the cosines with its guides, the map is upsampled and
filtered pixel by pixel, every pixel is kept, and the metrics are scikit-learn's and the 200
thresholds of PRO (docs/metrics.md, protocol `spg`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor

from benchmarks.reference.sae import rows, topk_code


@dataclass(frozen=True)
class LiteralModel:
    """A frozen SAE with the four codes of the guides, one layer."""

    encoder: Tensor  # (C, D)
    dictionary: Tensor  # (C, D)
    codes: Tensor  # (4, C)
    dead: Tensor  # (C,) bool
    k: int
    tau: float = 0.07

    def reconstruct(self, tokens: Tensor) -> Tensor:
        """The SAE's forward pass of tokens (1, N, D): dense codes times the whole dictionary."""
        return topk_code(tokens @ self.encoder.t(), self.k) @ rows(self.dictionary)

    def image_map(self, tokens: Tensor, grid: tuple[int, int], size: int) -> np.ndarray:
        """Blurred map (S, S) float32 of one image's tokens (1, 1 + N, D)."""
        self.reconstruct(tokens[:, 1:])  # the published evaluation runs it for every image
        effective = torch.where(self.dead, torch.zeros_like(self.codes), self.codes.relu())
        guides = effective @ rows(self.dictionary)
        similarity = F.cosine_similarity(tokens[:, :, None], guides[None, None], dim=-1)
        local = torch.softmax(similarity[:, 1:, 2:] / self.tau, dim=-1)
        maps = F.interpolate(
            local.permute(0, 2, 1).reshape(1, 2, *grid),
            size=(size, size),
            mode="bilinear",
            align_corners=False,
        )
        anomaly = (maps[:, 1] + 1 - maps[:, 0]) / 2
        return np.asarray(ndimage.gaussian_filter(anomaly[0].numpy(), 4.0))


def pixel_metrics(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """AUROC, AP and F1-max of all pixels together, and the published PRO.

    `maps` (I, H, W) float32, `masks` (I, H, W) in {0, 1}.
    """
    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "ap": float(average_precision_score(labels, scores)),
        "f1_max": float(f1.max()),
        "pro": pro(maps, masks).value,
    }


class Pro(NamedTuple):
    """PRO and the number of its thresholds."""

    value: float
    thresholds: int


def pro(maps: np.ndarray, masks: np.ndarray, *, fast: bool = True) -> Pro:
    """The published PRO threshold by threshold, its fast or its slow function.

    Regions are labelled once and their pixels kept, as the fast function does.
    """
    regions = [place for image in zip(range(len(maps)), masks, strict=True) for place in _of(image)]
    normal = masks == 0
    low, high = maps.min(), maps.max()
    overlaps, rates = [], []
    thresholds = np.arange(low, high, (high - low) / 200)
    for threshold in thresholds:
        positive = maps > threshold
        each = [positive[image][inside].mean() for image, inside in regions]
        overlaps.append(np.mean(each) if each else 0.0 if fast else float("nan"))
        rates.append(np.logical_and(positive, normal).sum() / normal.sum())
    kept = np.array(rates) < 0.3
    fpr, overlap = np.array(rates)[kept], np.array(overlaps)[kept]
    spread = fpr.max() - fpr.min()
    with np.errstate(invalid="ignore"):
        fpr = (fpr - fpr.min()) / (spread + 1e-12 if fast else spread)
    return Pro(float(auc(fpr, overlap)), len(thresholds))


def _of(image: tuple[int, np.ndarray]) -> list[tuple[int, tuple[np.ndarray, ...]]]:
    number, mask = image
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    return [(number, np.nonzero(labels == region)) for region in range(1, n + 1)]
