"""Outlines of masks, and photographs at the page's size: uint8 in, uint8 out."""

import numpy as np

_RINGS = ((255, 255, 255), (0, 0, 0))
"""An outline's inner and outer line: one of them contrasts with any picture."""


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 with a line of a pixel around the regions of a mask.

    The mask (H, W) is above 0 in a defect; the line is white, with a black one around it.
    """
    from scipy.ndimage import binary_dilation

    out = image.copy()
    inside = mask > 0
    for colour in _RINGS:
        grown = binary_dilation(inside, np.ones((3, 3), bool))
        out[grown & ~inside] = colour
        inside = grown
    return out


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 to at most `longest` pixels a side, aspect ratio kept."""
    from PIL import Image

    height, width = fitted_size(image.shape[:2], longest)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def fitted_size(size: tuple[int, ...], longest: int) -> tuple[int, int]:
    """(height, width) of an image of `size` with at most `longest` pixels a side."""
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
