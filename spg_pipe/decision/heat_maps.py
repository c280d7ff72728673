"""Heat maps: anomaly maps in colours over their photographs, uint8 in and out.

One scale of colours serves a whole set of images, so that two overlays can be compared. A map is
never stretched to its own range: that would paint every normal image red somewhere.
"""

from functools import cache

import numpy as np
from matplotlib import colormaps
from scipy.ndimage import binary_dilation

COLOUR_MAP = "inferno"
"""Perceptually uniform, readable in grey print and with colour-vision deficiencies."""
OPACITY = 0.65
"""Share of the colour in an overlay; the rest is the photograph. The same for every value, so that
equal steps of the map stay equal steps of lightness."""
_BAND = 256
"""Rows at once: floats of a whole large photograph would take 50 bytes a pixel."""


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, *, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """Lay an anomaly map over its photograph in the colours of `COLOUR_MAP`.

    The photograph is turned grey, so that every colour belongs to the map.

    Parameters
    ----------
    image : (H, W, 3) uint8
    anomaly_map : (H, W) float
        Anomaly probabilities in [0, 1], at the image's size.
    low, high : float
        Values that get the darkest and the brightest colour; values beyond them are clipped. Give
        one pair for a whole set of images.

    Returns
    -------
    (H, W, 3) uint8
    """
    out = np.empty_like(image)
    for start in range(0, len(image), _BAND):
        band = slice(start, start + _BAND)
        share = np.clip((anomaly_map[band].astype(np.float32) - low) / (high - low), 0, 1)
        level = np.rint(share * 255).astype(np.uint8)
        grey = image[band] @ np.array([0.299, 0.587, 0.114], np.float32)
        out[band] = np.rint(_palette()[level] + grey[:, :, None] * (1 - OPACITY))
    return out


def eight_bit(image: np.ndarray) -> np.ndarray:
    """An image as `datasets.read_image` gives it, (H, W, 3) uint8 or uint16, as uint8."""
    if image.dtype == np.uint8:
        return image
    return np.rint(image * (255.0 / np.iinfo(image.dtype).max)).astype(np.uint8)


def outline(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 with a line of a pixel around the regions of a mask.

    The mask (H, W) is above 0 in a defect; the line is white, with a black one around it: one of
    the two contrasts with any picture.
    """
    out = image.copy()
    inside = mask > 0
    for line in (colour, (0, 0, 0)):
        grown = binary_dilation(inside, np.ones((3, 3), bool))
        out[grown & ~inside] = line
        inside = grown
    return out


def colour_bar(width: int = 256, height: int = 16) -> np.ndarray:
    """The scale from low to high, as `overlay` paints it on medium grey; (height, width, 3)."""
    ramp = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
    return overlay(np.full((height, width, 3), 128, np.uint8), ramp)


@cache
def _palette() -> np.ndarray:
    """What each of 256 levels adds to the photograph: (256, 3) float32."""
    colours = colormaps[COLOUR_MAP](np.linspace(0, 1, 256))[:, :3]
    return (colours * 255 * OPACITY).astype(np.float32)
