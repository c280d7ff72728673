"""The pictures of one image of a gallery: photograph, map, outline of the mask.

The map lies over the photograph on the page, whose reader chooses how much of it shows. It is
opaque and small: it is blurred, and a browser enlarges it as smoothly as it was.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

LONGEST = 480
"""Longest side of a photograph, pixels."""


@dataclass(frozen=True)
class Pictures:
    """The files of an image in images/."""

    stem: str
    """How their names begin: digits, letters, "-" and "_" alone, another one for each image."""
    size: tuple[int, int]
    """(height, width) at which the image is shown."""
    photograph: bool = True
    """<stem>.jpg is there; else the map lies over plain grey."""
    mask: bool = False
    """<stem>-mask.png is there."""


def draw(
    folder: Path,
    stem: str,
    photograph: np.ndarray | None,
    anomaly_map: np.ndarray,
    shown: tuple[float, float],
    *,
    mask: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> Pictures:
    """Write the pictures of an image into `folder` (a gallery's images/). Safe in any thread.

    Parameters
    ----------
    photograph : (H, W, 3) uint8 or uint16, or None
        None if it cannot be read.
    anomaly_map : (h, w) float32 in [0, 1]
        Of the whole image, at any size: it is shrunk if it is larger than it is shown.
    shown : (low, high)
        Values that get the darkest and the brightest colour.
    mask : (h, w), optional
        Above 0 in a defect, at any size.
    size : (height, width), optional
        Of the original; needed without a photograph.
    """
    raise NotImplementedError
