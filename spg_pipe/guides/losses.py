"""Losses of the guides: detection, segmentation (focal + dice) and sparsity.

The patch softmax has two channels that sum to 1, and bilinear upsampling keeps that sum, so
everything is computed from the anomaly channel alone: p_normal = 1 − p_anomaly.
"""

import math
from typing import Any, NamedTuple

import torch
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


class _Segmentation(torch.autograd.Function):
    """Focal and both dice losses with their gradient in closed form.

    A map has H·W pixels and the formulas many elementwise steps; recorded one by one they would
    be written to memory dozens of times. Dice is a function of three sums, so its gradient is
    affine in the mask; focal needs one map of derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, probability: Tensor, mask: Tensor, axes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        focal, focal_grad = _focal(probability, mask)
        pixels = math.prod(probability.shape[axis] for axis in axes)
        overlap, p, m = (
            values.sum(axes, keepdim=True).double()
            for values in (probability * mask, probability, mask)
        )
        ratio, size = _dice_parts(overlap, p, m)
        # With p' = 1 − p and m' = 1 − m: Σp'm' = pixels − Σp − Σm + Σpm.
        ratio_n, size_n = _dice_parts(pixels - p - m + overlap, pixels - p, pixels - m)
        ctx.save_for_backward(mask, focal_grad, ratio, size, ratio_n, size_n)
        dtype = probability.dtype
        return focal, (1 - ratio).mean().to(dtype), (1 - ratio_n).mean().to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        mask, focal_grad, ratio, size, ratio_n, size_n = ctx.saved_tensors
        focal, anomaly, normal = (grad.double() for grad in grads)
        # ∂dice/∂p = (ratio − 2m)/size; the normal channel: (2(1 − m) − ratio_n)/size_n.
        constant = anomaly * ratio / size + normal * (2 - ratio_n) / size_n
        slope = -2 * (anomaly / size + normal / size_n)
        count = ratio.numel()
        dtype = mask.dtype
        grad = torch.addcmul((constant / count).to(dtype), mask, (slope / count).to(dtype))
        return grad.add_(focal_grad * focal.to(dtype)), None, None


def _dice_parts(overlap: Tensor, p: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """(2Σpm + 1)/(Σp + Σm + 1) and its denominator."""
    size = p + m + _DICE_SMOOTH
    return (2 * overlap + _DICE_SMOOTH) / size, size


def _focal(probability: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of −(1 − pt)² log pt and its derivative by the probability, (B, H, W).

    With a target clamped to [ε, 1 − ε], pt = target·p + (1 − target)·(1 − p) + ε is
    c·u + 2ε for c = 1 − 2ε and u the probability of the mask's class: p where m = 1, 1 − p
    where m = 0. In this form nothing cancels where u is close to 0.
    """
    c = 1 - 2 * _FOCAL_SMOOTH
    sign = 2 * mask - 1
    pt = (1 - mask).addcmul_(probability, sign).mul_(c).add_(2 * _FOCAL_SMOOTH)
    log, rest = pt.log(), 1 - pt
    squared = rest * rest
    count = pt.numel()
    loss = -(squared * log).sum() / count
    derivative = rest.mul_(log).mul_(2).addcdiv_(squared, pt, value=-1)
    return loss, derivative.mul_(sign).mul_(c / count)


def segmentation_loss(
    probability: Tensor, mask: Tensor, *, single_image_by_row: bool = False
) -> Segmentation:
    """Focal and both dice losses at full resolution.

    Focal is the mean of −(1 − pt)² log pt; dice is 1 − (2Σpm + 1)/(Σp + Σm + 1) per image,
    averaged over images.

    Parameters
    ----------
    probability : (B, H, W) float32
        Upsampled anomaly probability.
    mask : (B, H, W) float32 in {0, 1}
    single_image_by_row : bool
        Protocol spg: a batch of one image computes dice for each of its rows
        (docs/method.md §5).
    """
    by_row = single_image_by_row and probability.shape[0] == 1
    return Segmentation(*_Segmentation.apply(probability, mask, (2,) if by_row else (1, 2)))


def sparsity_loss(codes: Tensor) -> Tensor:
    """Mean over guides of ‖e‖₁ for effective codes (4, C)."""
    return codes.abs().sum(dim=1).mean()
