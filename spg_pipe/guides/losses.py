"""Losses of the guides: detection, segmentation (focal + dice) and sparsity."""

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
        ctx: Any, anomaly: Tensor, normal: Tensor, mask: Tensor, axes: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        rest = 1 - mask
        hit, hit_normal = anomaly * mask, normal * rest
        focal, focal_grad = _focal(hit + hit_normal)
        ratio, size = _dice_parts(hit, anomaly, mask, axes)
        ratio_n, size_n = _dice_parts(hit_normal, normal, rest, axes)
        ctx.save_for_backward(mask, rest, focal_grad, ratio, size, ratio_n, size_n)
        dtype = anomaly.dtype
        return focal, (1 - ratio).mean().to(dtype), (1 - ratio_n).mean().to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        mask, rest, focal_grad, ratio, size, ratio_n, size_n = ctx.saved_tensors
        focal = focal_grad * grads[0]
        anomaly = _dice_gradient(grads[1], mask, ratio, size)
        normal = _dice_gradient(grads[2], rest, ratio_n, size_n)
        return anomaly.addcmul_(focal, mask), normal.addcmul_(focal, rest), None, None


def _dice_parts(
    hit: Tensor, probability: Tensor, mask: Tensor, axes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """(2Σpm + 1)/(Σp + Σm + 1) and its denominator, for `hit` = p·m."""
    overlap, p, m = (x.sum(axes, keepdim=True).double() for x in (hit, probability, mask))
    size = p + m + _DICE_SMOOTH
    return (2 * overlap + _DICE_SMOOTH) / size, size


def _dice_gradient(grad: Tensor, mask: Tensor, ratio: Tensor, size: Tensor) -> Tensor:
    """∂dice/∂p = (ratio − 2m)/size of every pixel, averaged over images, times `grad`."""
    scale = grad.double() / (size * ratio.numel())
    return torch.addcmul((scale * ratio).to(mask.dtype), mask, (-2 * scale).to(mask.dtype))


def _focal(hit: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of −(1 − pt)² log pt and its derivative, (B, H, W).

    `hit` is the probability u of the mask's own class. With a target clamped to [ε, 1 − ε],
    pt = Σ target·p + ε is (1 − 2ε)·u + 2ε.
    """
    c = 1 - 2 * _FOCAL_SMOOTH
    pt = (hit * c).add_(2 * _FOCAL_SMOOTH)
    log, rest = pt.log(), 1 - pt
    squared = rest * rest
    count = pt.numel()
    loss = -(squared * log).sum() / count
    derivative = rest.mul_(log).mul_(2).addcdiv_(squared, pt, value=-1)
    return loss, derivative.mul_(c / count)


def segmentation_loss(
    anomaly: Tensor, normal: Tensor, mask: Tensor, *, single_image_by_row: bool = False
) -> Segmentation:
    """Focal and both dice losses at full resolution.

    Focal is the mean of −(1 − pt)² log pt; dice is 1 − (2Σpm + 1)/(Σp + Σm + 1) per image,
    averaged over images.

    Parameters
    ----------
    anomaly, normal : (B, H, W) float32
        Upsampled probabilities, which sum to 1. Both are needed: at τ = 0.07 the smaller one is
        often below float32's resolution of the other.
    mask : (B, H, W) float32 in {0, 1}
    single_image_by_row : bool
        Protocol spg: a batch of one image computes dice for each of its rows
        (docs/method.md §5).
    """
    by_row = single_image_by_row and anomaly.shape[0] == 1
    return Segmentation(*_Segmentation.apply(anomaly, normal, mask, (2,) if by_row else (1, 2)))


def sparsity_loss(codes: Tensor) -> Tensor:
    """Mean over guides of ‖e‖₁ for effective codes (4, C)."""
    return codes.abs().sum(dim=1).mean()
