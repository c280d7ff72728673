"""What the painters share: irregular regions, smooth noise, contrast taken from the photograph.

A defect must not give itself away by being vivid: whatever a painter draws gets the local mean
colour of the photograph, and its local contrast is scaled to about that of the photograph
(`contrast.py` measures how well this hides it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from spg_pipe.datasets.paint.demo.photographs import grey

_GAIN = 1.0
"""Contrast of a defect, in that of the photograph."""
_LEAST_CONTRAST = 0.017
"""Of a range of 1: on the smoothest photographs a defect would otherwise be invisible."""
CONTRAST_SIGMA = 6.0
"""Width in pixels of the neighbourhood that local contrast refers to."""
_COLOUR_SIGMA = (30.0, 30.0, 0.0)
"""Width in pixels of the neighbourhood whose mean colour a defect takes; not across channels."""


@dataclass(frozen=True)
class Canvas:
    """The window of an image in which a defect is painted."""

    pixels: np.ndarray
    """(W, W, 3) float32 in [0, 1]."""
    contrast: float
    """Mean local contrast of the whole image (`local_contrast`)."""

    @property
    def size(self) -> int:
        """W, pixels."""
        return int(self.pixels.shape[0])


class Paint(NamedTuple):
    """What a painter returns, in the window's coordinates."""

    pixels: np.ndarray
    """(W, W, 3) float: the defect's own appearance, everywhere."""
    alpha: np.ndarray
    """(W, W) float in [0, 1]: how much of it covers the photograph; 0 at the window's border."""


def local_contrast(plane: np.ndarray) -> np.ndarray:
    """|plane − its Gaussian blur|, same shape."""
    return np.abs(plane - ndimage.gaussian_filter(plane, CONTRAST_SIGMA))


def noise(size: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1: (size, size), features about `sigma` pixels wide."""
    plane = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return np.asarray((plane - plane.mean()) / plane.std())


def rotated_grid(size: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (size, size) along and across `angle`, 0 in the window's middle, pixels."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def blob(size: int, rng: np.random.Generator) -> np.ndarray:
    """An irregular round region in the middle of a window: alpha (size, size)."""
    radius = rng.uniform(0.21, 0.34) * size
    stretch = rng.uniform(1.0, 1.15)
    along, across = rotated_grid(size, rng.uniform(0, np.pi))
    distance = np.hypot(along / stretch, across * stretch) / radius
    distance = distance * (1 + 0.12 * noise(size, 0.13 * size, rng))
    return _largest_part(_feathered((1 - distance) * radius))


def _feathered(inside: np.ndarray) -> np.ndarray:
    """Alpha from a signed distance in pixels: an edge two pixels wide, a free border of one."""
    alpha = np.clip(inside / 2 + 0.5, 0, 1)
    alpha[[0, -1]] = alpha[:, [0, -1]] = 0
    return alpha


def _largest_part(alpha: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(alpha > 0)
    if count < 2:
        return alpha
    areas = ndimage.sum_labels(np.ones_like(alpha), parts, range(1, count + 1))
    return np.where(parts == int(np.argmax(areas)) + 1, alpha, 0)


def cover(canvas: Canvas, alpha: np.ndarray, relief: np.ndarray) -> Paint:
    """Colour a relief like the photograph and give it the photograph's local contrast.

    Parameters
    ----------
    alpha, relief
        (W, W); of the relief only the shape counts, not the scale.
    """
    inside = alpha > 0.5
    level = relief - relief[inside].mean()
    wanted = max(_GAIN * canvas.contrast, _LEAST_CONTRAST)
    level = level * (wanted / (local_contrast(level)[inside].mean() + 1e-6))
    colour = ndimage.gaussian_filter(canvas.pixels, _COLOUR_SIGMA, mode="nearest", truncate=2)
    return Paint(colour + level[..., None], alpha)


def canvas_of(image: np.ndarray, top: int, left: int, size: int) -> Canvas:
    """The window of an image (H, W, 3) at (top, left)."""
    contrast = float(local_contrast(grey(image)).mean())
    return Canvas(image[top : top + size, left : left + size], contrast)
