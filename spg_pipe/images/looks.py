"""Whether a picture looks like a mask: by its colours alone."""

from enum import Enum
from pathlib import Path

import numpy as np

from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.reading import read_image

_SIDE, _COLOURS = 256, 16
"""At most: pixels along a side that a look takes, and colours of a mask."""


class Look(Enum):
    """What a picture looks like, the surest mask first."""

    FEW_COLOURS = 0
    TWO_TONED = 1
    """A mask with the noise of a lossy format, or a back-lit photograph."""
    PHOTO = 2


def look(file: Path) -> tuple[Look, tuple[int, ...]]:
    """What a picture looks like, and its shape. One that cannot be read is none of a mask."""
    try:
        pixels = read_image(file, exif=False)
    except UnusableFileError:
        return Look.PHOTO, ()
    step = max(1, max(pixels.shape[:2]) // _SIDE)
    part = pixels[::step, ::step].reshape(-1, 3).astype(np.int64)
    colours = len(np.unique(part @ np.array([1 << 32, 1 << 16, 1])))
    if colours <= min(_COLOURS, len(part) // 4):
        return Look.FEW_COLOURS, pixels.shape
    tones = part / np.iinfo(pixels.dtype).max
    bright, dark = (tones > 0.85).mean(), (tones < 0.15).mean()
    noisy = 1 - bright - dark < min(bright, 0.03)
    return (Look.TWO_TONED if noisy else Look.PHOTO), pixels.shape


def is_like_mask(file: Path) -> bool:
    """Whether a picture looks like a mask, of any format."""
    return look(file)[0] is not Look.PHOTO
