"""Heat maps: anomaly maps in colours over their photographs, uint8 in and out.

One scale of colours serves a whole set of images, so that two overlays can be compared. A map is
never stretched to its own range: that would paint every normal image red somewhere.
"""

import io
from functools import cache

import numpy as np
from matplotlib import colormaps
from PIL import Image

COLOUR_MAP = "inferno"
"""Perceptually uniform, readable in grey print and with colour-vision deficiencies."""
OPACITY = 0.65
"""Share of the colour in an overlay; the rest is the photograph. The same for every value, so that
equal steps of the map stay equal steps of lightness."""
_LONGEST = 65_500
"""The longest side of a JPEG that Pillow writes, pixels."""
_BAND = 2**16
"""Pixels at once, whose memory is used again: fresh pages would take most of the time."""


def overlay(
    image: np.ndarray, anomaly_map: np.ndarray, *, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """Lay an anomaly map over its photograph in the colours of `COLOUR_MAP`.

    The photograph is turned grey, so that every colour belongs to the map.

    Parameters
    ----------
    image : (H, W, 3) uint8
    anomaly_map : (H, W) float32
        Anomaly probabilities in [0, 1], at the image's size.
    low, high : float
        Values that get the darkest and the brightest colour; values beyond them are clipped. Give
        one pair for a whole set of images.

    Returns
    -------
    (H, W, 3) uint8
    """
    return overlay_rgbx(image, anomaly_map, low=low, high=high)[:, :, :3]


def overlay_rgbx(
    image: np.ndarray, anomaly_map: np.ndarray, *, low: float, high: float
) -> np.ndarray:
    """`overlay` with a fourth byte that means nothing, as Pillow takes it without a copy.

    (H, W, 4) uint8.
    """
    height, width = anomaly_map.shape
    colours, greys = _palettes()
    # Whole pixels of four bytes, of which none overflows into the next: eight times faster.
    out = np.empty((height, width), np.uint32)
    rows = max(1, _BAND // width)
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        level = anomaly_map[band] * np.float32(255 / (high - low))
        level += np.float32(0.5 - low * 255 / (high - low))
        np.clip(level, 0, 255, out=level)
        grey = np.asarray(Image.fromarray(image[band]).convert("L"))
        np.take(colours, level.astype(np.uint8), out=out[band], mode="clip")
        out[band] += np.take(greys, grey)
    return out.view(np.uint8).reshape(height, width, 4)


def eight_bit(image: np.ndarray) -> np.ndarray:
    """An image as `datasets.read_image` gives it, (H, W, 3) uint8 or uint16, as uint8."""
    if image.dtype == np.uint8:
        return image
    return np.rint(image * (255.0 / np.iinfo(image.dtype).max)).astype(np.uint8)


def outline(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """A copy of an image (H, W, 3 or 4) uint8 with a line of a pixel around a mask's regions.

    The mask (H, W) is above 0 in a defect; the line is white, with a black one around it: one of
    the two contrasts with any picture.
    """
    out = image.copy()
    inside = mask > 0
    for line in (colour, (0, 0, 0)):
        grown = _grown(inside)
        out[grown & ~inside, :3] = line
        inside = grown
    return out


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) bool with the eight neighbours of its pixels: 70 times scipy's dilation."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def palette() -> list[int]:
    """Red, green and blue of 256 levels of a map alone, for a picture of one byte a pixel."""
    colours = colormaps[COLOUR_MAP](np.arange(256))[:, :3]
    return [int(value) for value in np.rint(colours * 255).ravel()]


@cache
def _palettes() -> tuple[np.ndarray, np.ndarray]:
    """What each of 256 levels of the map and of the photograph adds to a pixel: (256,) uint32."""
    colours = np.rint(colormaps[COLOUR_MAP](np.linspace(0, 1, 256)) * 255 * OPACITY)
    greys = np.rint(np.arange(256) * (1 - OPACITY))[:, None].repeat(4, axis=1)
    both = [table.astype(np.uint8).view(np.uint32).reshape(-1) for table in (colours, greys)]
    return both[0], both[1]


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """A picture as JPEG, made smaller if it has a longer side than a JPEG can have."""
    data = io.BytesIO()
    if max(picture.size) > _LONGEST:
        picture = picture.convert("RGB")
        picture.thumbnail((_LONGEST, _LONGEST))
    picture.save(data, "JPEG", quality=quality)
    return data.getvalue()
