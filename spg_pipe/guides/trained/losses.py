"""The loss that compares a map with its mask, focal + dice, and what it needs of the masks.

Upsampling is linear, `R p Cᵀ` with two interpolation matrices. A sum over pixels of an upsampled
map times a mask is therefore a sum over *patches* of the map times `Rᵀ mask C`, which is computed
once a batch for all steps, runs and layers of the same grid. Focal alone needs pixels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.guides.model import interpolation

_FOCAL_SMOOTH = 1e-5
_DICE_SMOOTH = 1.0


@dataclass(frozen=True)
class Region:
    """Some images of a batch and the rectangle outside which their masks are empty."""

    images: slice
    rows: slice
    columns: slice
    mask: Tensor
    """(images, rows, columns) bool."""
    sign: Tensor
    """1 where the mask is empty, −1 where it is not; same shape."""

    @property
    def empty(self) -> bool:
        """No anomalous pixel."""
        return self.mask.numel() == 0


@dataclass(frozen=True)
class PixelTarget:
    """The masks of a batch as its losses need them, for one patch grid."""

    size: tuple[int, int]
    """(H, W) pixels."""
    rows: Tensor
    """R, (H, h)."""
    columns: Tensor
    """C, (W, w)."""
    regions: tuple[Region, ...]
    area: Tensor
    """(h, w) float64: pixels that a patch stands for."""
    overlap: Tensor
    """(B, h, w) float64: those of them that are anomalous."""
    by_row: bool
    """Dice is computed for each pixel row of the single image: B is H and h is 1 above."""

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches."""
        return self.rows.shape[1], self.columns.shape[1]

    @classmethod
    def of(
        cls, masks: Tensor, grid: tuple[int, int], *, single_image_by_row: bool = False
    ) -> "PixelTarget":
        """Of masks (B, H, W) in {0, 1} for patches on a `grid`.

        `single_image_by_row` is protocol spg: a batch of one image computes dice for each of its
        rows (docs/method.md §5).
        """
        height, width = masks.shape[1:]
        rows = interpolation(grid[0], height).to(masks.device, torch.float64)
        columns = interpolation(grid[1], width).to(masks.device, torch.float64)
        regions = _regions(masks)
        by_row = single_image_by_row and len(masks) == 1
        overlap = torch.zeros((len(masks), *grid), dtype=torch.float64, device=masks.device)
        if by_row:
            overlap = (masks[0].double() @ columns)[:, None]
            area = columns.sum(0)[None]
        else:
            for region in regions:
                inside = region.mask.double() @ columns[region.columns]
                overlap[region.images] = rows[region.rows].t() @ inside
            area = rows.sum(0)[:, None] * columns.sum(0)
        rows, columns = rows.to(masks.dtype), columns.to(masks.dtype)
        return cls((height, width), rows, columns, regions, area, overlap, by_row)


def _regions(masks: Tensor) -> tuple[Region, ...]:
    """On a CPU an image each, so that its pixels stay in the cache, cut to its defects.

    Elsewhere the whole batch at once: looking for the rectangles would wait for the device.
    """
    if masks.device.type != "cpu":
        return (_region(masks, slice(None), slice(None), slice(None)),)
    # The maximum of floats is 14 times faster than `any`.
    spans = [[_span(line) for line in masks.amax(dim).numpy()] for dim in (2, 1)]
    return tuple(
        _region(masks, slice(image, image + 1), rows, columns)
        for image, (rows, columns) in enumerate(zip(*spans, strict=True))
    )


def _region(masks: Tensor, images: slice, rows: slice, columns: slice) -> Region:
    inside = masks[images, rows, columns]
    return Region(images, rows, columns, inside > 0, 1 - 2 * inside)


def _span(line: np.ndarray) -> slice:
    """The smallest slice that holds all of a mask's ones."""
    found = line.nonzero()[0]
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


class Segmentation(NamedTuple):
    """Parts of the segmentation loss, scalars."""

    focal: Tensor
    dice_anomaly: Tensor
    dice_normal: Tensor

    @property
    def total(self) -> Tensor:
        """focal + dice(anomaly) + dice(normal)."""
        return self.focal + self.dice_anomaly + self.dice_normal


def segmentation_loss(logits: Tensor, target: PixelTarget) -> Segmentation:
    """Focal and both dice losses at full resolution.

    Focal is the mean of −(1 − pt)² log pt; dice is 1 − (2Σpm + 1)/(Σp + Σm + 1) per image,
    averaged over images.

    Parameters
    ----------
    logits : (B, h, w)
        (cosine with anomaly − cosine with normal)/τ of each patch. The anomaly probability is
        their sigmoid, the normal one that of −logits: at τ = 0.07 the smaller one is often below
        float32's resolution of the other, so neither is computed from the other.
    target : PixelTarget
        The masks, for the same grid.
    """
    anomaly, normal = logits.double().sigmoid(), (-logits).double().sigmoid()
    defect, area = target.overlap, target.area
    return Segmentation(
        _Focal.apply(logits, target),
        _dice(anomaly, defect, target).to(logits.dtype),
        _dice(normal, area - defect, target).to(logits.dtype),
    )


def _dice(probability: Tensor, overlap: Tensor, target: PixelTarget) -> Tensor:
    """Dice of patches (B, h, w), of which `overlap` pixels each are in the mask."""
    if target.by_row:
        probability = (target.rows.to(probability) @ probability[0])[:, None]
    hit = (probability * overlap).sum((1, 2))
    # Interpolation weights of a pixel sum to 1, so the mask's pixels are those of its overlaps.
    size = (probability * target.area).sum((1, 2)) + overlap.sum((1, 2)) + _DICE_SMOOTH
    return (1 - (2 * hit + _DICE_SMOOTH) / size).mean()


class _Focal(torch.autograd.Function):
    """Mean of −(1 − pt)² log pt over pixels, its gradient in closed form.

    With a target clamped to [ε, 1 − ε], pt = Σ target·p + ε is (1 − 2ε)·u + 2ε, where u is the
    upsampled probability of the mask's own class. Weights of a pixel sum to 1, so pt is upsampled
    from patches as it is.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: PixelTarget) -> Tensor:
        c = 1 - 2 * _FOCAL_SMOOTH
        anomaly, normal = logits.sigmoid(), (-logits).sigmoid()
        pt_normal, pt_anomaly = (p * c + 2 * _FOCAL_SMOOTH for p in (normal, anomaly))
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        slopes = torch.empty_like(logits)
        for region in target.regions:
            pt = _own_class(pt_normal, pt_anomaly, target, region)
            loss, slope = _focal_pixels(pt)
            total += loss
            if not region.empty:
                slope[:, region.rows, region.columns] *= region.sign
            slopes[region.images] = target.rows.t() @ (slope @ target.columns)
        count = len(logits) * target.size[0] * target.size[1]
        # An anomalous pixel sees the anomaly probability, a normal one the other, whose slope is
        # the opposite: hence the signs above. The sigmoid's own slope is their product.
        ctx.save_for_backward(slopes * (anomaly * normal) * (c / count))
        return (total / count).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0], None


def _own_class(normal: Tensor, anomaly: Tensor, target: PixelTarget, region: Region) -> Tensor:
    """pt of a region's images, (b, H, W), from both classes' patches (B, h, w)."""
    pt = target.rows @ normal[region.images] @ target.columns.t()
    if not region.empty:
        inside = target.rows[region.rows] @ anomaly[region.images]
        inside = inside @ target.columns[region.columns].t()
        place = pt[:, region.rows, region.columns]
        place.copy_(torch.where(region.mask, inside, place))
    return pt


def _focal_pixels(pt: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of −(1 − pt)² log pt, and minus its derivative for every pixel; pt is overwritten."""
    log, rest = pt.log(), 1 - pt
    slope = torch.div(rest, pt, out=pt).sub_(log, alpha=2).mul_(rest)
    return -log.mul_(rest).mul_(rest).sum(), slope
