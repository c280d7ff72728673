"""From pixels to what a backbone takes, and from a mask to the pixels that a metric counts.

The two orders of preprocessing (docs/method.md §1) differ by up to 0.016 in normalised units, so
the order is part of the specification, not a detail.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from spg_pipe.artefacts.record import Deviation, Figure, Size


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a backbone's input (docs/method.md §1)."""

    size: Size
    """Side S of the square input in pixels; the aspect ratio is not kept."""
    order: Literal["float", "uint8"]
    """`float`: scale to [0, 1], then resize (DINOv3). `uint8`: resize 8-bit pixels first (CLIP)."""
    interpolation: Literal["bilinear", "bicubic"]
    """Filter of the resize, always with antialias."""
    mean: tuple[Figure, Figure, Figure]
    """Per-channel mean that is subtracted, in units of [0, 1]."""
    std: tuple[Deviation, Deviation, Deviation]
    """Per-channel deviation to divide by, in units of [0, 1]."""


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize a mask the way the reference does (docs/method.md §1).

    The 0/255 mask is resized by Pillow's antialiased bilinear filter in 8 bits; a pixel is a
    defect where the result is above one half. (A float resize differs in 0.2 % of the pixels.)

    Parameters
    ----------
    mask
        (H, W), any integer or bool dtype; above 0 is a defect.
    size
        S for (S, S), or (height, width).

    Returns
    -------
    ndarray, (S, S) or (height, width)
        uint8 in {0, 1}.
    """
    return (soft_mask(mask, size) > 127).astype(np.uint8)  # v / 255 > 0.5


def soft_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """The resized mask of `resize_mask` before its threshold: uint8, 0 to 255."""
    height, width = (size, size) if isinstance(size, int) else size
    eight_bit = Image.fromarray(np.multiply(mask > 0, 255, dtype=np.uint8))
    return np.array(eight_bit.resize((width, height), Image.Resampling.BILINEAR))


def preprocess(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """Turn an image into a backbone's input (docs/method.md §1).

    Parameters
    ----------
    image
        (H, W, 3), uint8 or uint16; an integer type is scaled by its range.
    spec
        Size, order, filter and normalisation.

    Returns
    -------
    ndarray, (3, S, S)
        float32, C-contiguous, normalised.
    """
    resized = _resize_float(image, spec) if spec.order == "float" else _resize_uint8(image, spec)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
    resized -= mean
    resized /= std
    return resized


def _resize_float(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """(H, W, 3) integers to (3, S, S) float32 near [0, 1], scaled before the resize."""
    import torch
    import torch.nn.functional as F

    # Multiplying by 1/range in numpy gives the reference's bits and a fresh, writable array.
    scale = np.float32(1.0 / np.iinfo(image.dtype).max)
    scaled = np.multiply(image, scale, dtype=np.float32)
    tensor = torch.from_numpy(scaled).permute(2, 0, 1)[None]
    size = (spec.size, spec.size)
    resized = F.interpolate(tensor, size, mode=spec.interpolation, antialias=True)[0]
    return resized.contiguous().numpy()


def _resize_uint8(image: np.ndarray, spec: Preprocess) -> np.ndarray:
    """(H, W, 3) integers to (3, S, S) float32 in [0, 1], resized by Pillow in 8 bits."""
    if image.dtype != np.uint8:
        image = np.round(image * (255.0 / np.iinfo(image.dtype).max)).astype(np.uint8)
    resample = Image.Resampling[spec.interpolation.upper()]
    # Across first and then down, as Pillow did both up to 12; 13 begins with tall images' columns,
    # which rounds otherwise.
    across = Image.fromarray(image).resize((spec.size, len(image)), resample)
    resized = across.resize((spec.size, spec.size), resample)
    channels_first = np.asarray(resized).transpose(2, 0, 1)
    return np.divide(channels_first, 255, dtype=np.float32, order="C")
