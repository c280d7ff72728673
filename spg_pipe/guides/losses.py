"""Losses of the guides: detection, segmentation (focal + dice) and sparsity.

The patch softmax has two channels that sum to 1, and bilinear upsampling keeps that sum, so
everything is computed from the anomaly channel alone: p_normal = 1 − p_anomaly.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

_FOCAL_SMOOTH = 1e-5
_DICE_SMOOTH = 1.0


class Segmentation(NamedTuple):
    """Parts of the segmentation loss, scalars."""

    focal: Tensor
    dice_anomaly: Tensor
    dice_normal: Tensor

    @property
    def total(self) -> Tensor:
        """focal + dice(anomaly) + dice(normal)."""
        return self.focal + self.dice_anomaly + self.dice_normal


def detection_loss(similarity: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with raw cosines as logits (no temperature).

    Parameters
    ----------
    similarity : (B, 2)
        Cosines with the global-normal and the global-anomaly guide.
    labels : (B,) int64
    """
    return F.cross_entropy(similarity, labels)


def focal_loss(probability: Tensor, mask: Tensor) -> Tensor:
    """Mean of −(1 − pt)² log pt.

    Parameters
    ----------
    probability : (B, H, W)
        Of the anomaly.
    mask : (B, H, W) float in {0, 1}
    """
    target = mask.clamp(_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH)
    pt = target * probability + (1 - target) * (1 - probability) + _FOCAL_SMOOTH
    return (-((1 - pt) ** 2) * pt.log()).mean()


def dice_loss(probability: Tensor, mask: Tensor, *, by_row: bool = False) -> Tensor:
    """1 − (2Σpm + 1)/(Σp + Σm + 1) per image, averaged over images.

    Parameters
    ----------
    probability, mask : (B, H, W)
    by_row : bool
        Treat the rows of one single image as images (protocol spg, docs/method.md §5).
    """
    axes = (2,) if by_row else (1, 2)
    overlap = (probability * mask).sum(dim=axes)
    size = probability.sum(dim=axes) + mask.sum(dim=axes)
    return (1 - (2 * overlap + _DICE_SMOOTH) / (size + _DICE_SMOOTH)).mean()


def segmentation_loss(
    probability: Tensor, mask: Tensor, *, single_image_by_row: bool = False
) -> Segmentation:
    """Focal and both dice losses at full resolution.

    Parameters
    ----------
    probability : (B, H, W)
        Upsampled anomaly probability.
    mask : (B, H, W) float in {0, 1}
    single_image_by_row : bool
        Protocol spg: a batch of one image computes dice row by row.
    """
    by_row = single_image_by_row and probability.shape[0] == 1
    return Segmentation(
        focal_loss(probability, mask),
        dice_loss(probability, mask, by_row=by_row),
        dice_loss(1 - probability, 1 - mask, by_row=by_row),
    )


def sparsity_loss(codes: Tensor) -> Tensor:
    """Mean over guides of ‖e‖₁ for effective codes (4, C)."""
    return codes.abs().sum(dim=1).mean()
