"""What the pixels of a batch's masks are to patches: everything that does not change with guides.

Upsampling is linear, `R p Cᵀ` with two interpolation matrices. A sum over pixels of an upsampled
map times a mask is therefore a sum over *patches* of the map times `Rᵀ mask C`, which is computed
once a batch for all steps, runs and layers of the same grid. Focal alone needs pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.guides.model import interpolation


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

        Parameters
        ----------
        single_image_by_row : bool
            Protocol spg: a batch of one image computes dice for each of its rows
            (docs/method.md §5).
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
