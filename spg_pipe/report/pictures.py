"""The pictures of one image of a gallery: photograph, map, outline of the mask.

The map lies over the photograph on the page, whose reader chooses how much of it shows. It is
opaque and small: a blurred map loses nothing, and a browser enlarges it smoothly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spg_pipe.decision.heat_maps import eight_bit, outline, palette
from spg_pipe.images.preprocess import soft_mask

LONGEST = 480
"""Longest side of a photograph, pixels."""
MAP_LONGEST = 160
"""Of a map that comes larger: the blur of 4 px at 336² has 2 px left."""
OUTLINE_LONGEST = 240
"""Of the outline, whose line of a pixel is then also seen in a small picture."""
_JPEG_QUALITY = 85
_TRANSPARENT, _WHITE, _BLACK = 0, 1, 2


@dataclass(frozen=True)
class ImageFiles:
    """The files of an image in images/."""

    stem: str
    """How their names begin: digits, letters, "-" and "_" alone, another one for each image."""
    size: tuple[int, int]
    """(height, width) at which the image is shown."""
    photograph: bool = True
    """<stem>.jpg is there; else the map lies over plain grey."""
    mask: bool = False
    """<stem>-mask.png is there."""


def write_pictures(
    folder: Path,
    stem: str,
    photograph: np.ndarray | None,
    anomaly_map: np.ndarray,
    shown: tuple[float, float],
    *,
    mask: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> ImageFiles:
    """Write the pictures of an image into `folder` (a gallery's images/). Safe in any thread.

    Parameters
    ----------
    photograph : (H, W, 3) uint8 or uint16, or None
        None if it cannot be read.
    anomaly_map : (h, w) float32 in [0, 1]
        Of the whole image, at any size.
    shown : (low, high)
        Values that get the darkest and the brightest colour.
    mask : (h, w), optional
        Above 0 in a defect, at any size.
    size : (height, width), optional
        Of the original; needed without a photograph.
    """
    if photograph is not None:
        size = (photograph.shape[0], photograph.shape[1])
    if size is None:
        raise ValueError("neither a photograph nor its size")
    at = fitting(size, LONGEST)
    if photograph is not None:
        small = Image.fromarray(eight_bit(photograph))
        small.thumbnail((at[1], at[0]), Image.Resampling.LANCZOS)
        at = (small.height, small.width)
        small.save(folder / f"{stem}.jpg", quality=_JPEG_QUALITY)
    map_picture(anomaly_map, shown).save(folder / f"{stem}-map.png")
    if mask is not None:
        smaller = fitting(size, OUTLINE_LONGEST)
        # However small a defect is, shrinking leaves a pixel of it.
        inside = soft_mask(mask, smaller) > (0 if smaller[0] < mask.shape[0] else 127)
        picture = outline_picture(inside)
        picture.save(folder / f"{stem}-mask.png", transparency=_TRANSPARENT)
    return ImageFiles(stem, at, photograph is not None, mask is not None)


def fitting(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) within `longest` pixels a side, aspect ratio kept, never enlarged."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def map_picture(anomaly_map: np.ndarray, shown: tuple[float, float]) -> Image.Image:
    """A map (h, w) in the colours of the heat maps, of one byte a pixel."""
    low, high = shown
    whole = Image.fromarray(np.ascontiguousarray(anomaly_map, np.float32))
    height, width = fitting((whole.height, whole.width), MAP_LONGEST)
    if (height, width) != (whole.height, whole.width):
        whole = whole.resize((width, height), Image.Resampling.BOX)
    level = (np.asarray(whole) - low) * (255 / (high - low))
    picture = Image.fromarray(np.rint(level.clip(0, 255)).astype(np.uint8), "P")
    picture.putpalette(palette())
    return picture


def outline_picture(mask: np.ndarray) -> Image.Image:
    """The outline of a mask's regions (h, w) bool: white, black around it, else transparent."""
    lines = outline(np.full((*mask.shape, 3), 128, np.uint8), mask)[:, :, 0]
    levels = np.select([lines == 255, lines == 0], [_WHITE, _BLACK], _TRANSPARENT)
    picture = Image.fromarray(levels.astype(np.uint8), "P")
    picture.putpalette([128, 128, 128, 255, 255, 255, 0, 0, 0])
    return picture
