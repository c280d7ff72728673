"""What every painter of defects is given and returns, and how that gets on an image."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Canvas:
    """A normal image as the painters see it."""

    levels: np.ndarray
    """(H, W, 3): uint8 or uint16 as `read_image` returns it, or float32 in [0, 1]."""
    low: float = 0.0
    """Value that is 0 in the image's own units."""
    span: float = 1.0
    """Values from 0 to 1 in these units."""
    grey: bool = False
    """Its channels are the same: so are those of its defects."""
    other: "Canvas | None" = None
    """Where foreign texture may come from; None: the image itself."""

    @property
    def side(self) -> int:
        """The shorter side, pixels."""
        return min(self.levels.shape[:2])

    def units(self, box: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
        """A window, default all, in the image's own units: (h, w, 3) float32."""
        return self.scaled(self.levels[box])

    def scaled(self, levels: np.ndarray) -> np.ndarray:
        """Values in the image's own units, float32; any shape."""
        return (levels.astype(np.float32) - self.low) / self.span


class Paint(NamedTuple):
    """What a painter returns."""

    box: tuple[slice, slice]
    """The window, rows and columns."""
    pixels: np.ndarray
    """(h, w, 3) float, the image's units: the defect's own appearance, everywhere in the window."""
    alpha: np.ndarray
    """(h, w) float in [0, 1]: how much of it covers the image."""


def blended(canvas: Canvas, paint: Paint) -> np.ndarray:
    """The window with the defect on it: (h, w, 3) float, in the image's units."""
    pixels = paint.pixels.mean(axis=2, keepdims=True) if canvas.grey else paint.pixels
    alpha = paint.alpha[..., None]
    return np.asarray((1 - alpha) * canvas.units(paint.box) + alpha * pixels)


def on_image(
    canvas: Canvas, box: tuple[slice, slice], window: np.ndarray, changed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The whole image with a painted window in it, (H, W, 3), and its mask, (H, W) bool."""
    painted = canvas.levels.copy()
    painted[box] = window
    mask = np.zeros(painted.shape[:2], bool)
    mask[box] = changed
    return painted, mask


def random_box(canvas: Canvas, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square window anywhere in an image; not larger than it."""
    size = min(size, canvas.side)
    top, left = (int(rng.integers(0, n - size + 1)) for n in canvas.levels.shape[:2])
    return slice(top, top + size), slice(left, left + size)


def turned(shape: tuple[int, int], angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (h, w) along and across `angle`, 0 in the window's middle, pixels."""
    y, x = np.mgrid[: shape[0], : shape[1]] - (np.array(shape)[:, None, None] - 1) / 2
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def bilinear(image: np.ndarray, at: np.ndarray, mode: str) -> np.ndarray:
    """Values of `image` (H, W, 3) at `at` (2, h, w), rows first: (h, w, 3) float32.

    `mode` says what lies beyond the edges, as for `scipy.ndimage.map_coordinates`.
    """
    channels = [
        ndimage.map_coordinates(image[..., c], at, output=np.float32, order=1, mode=mode)
        for c in range(3)
    ]
    return np.stack(channels, axis=-1)
