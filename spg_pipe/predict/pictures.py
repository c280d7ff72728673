"""Pictures of a result as the bytes of a file: heat map, raw map, mask."""

import io
from typing import Literal

import numpy as np
from PIL import Image

from spg_pipe.decision.heat_maps import eight_bit, jpeg, outline, overlay_rgbx
from spg_pipe.metrics.operating import above

QUALITY = 90
"""Of a JPEG: a tenth of the PNG's bytes in a hundredth of its time."""


def overlay_picture(
    pixels: np.ndarray,
    anomaly_map: np.ndarray,
    shown: tuple[float, float],
    threshold: float | None = None,
    kind: Literal["JPEG", "PNG"] = "JPEG",
) -> bytes:
    """The heat map over its photograph; with a threshold, a line around what is above it.

    Parameters
    ----------
    pixels : (H, W, 3) uint8 or uint16
        As `read_image` gives it.
    anomaly_map : (H, W) float32 in [0, 1]
    shown : (low, high)
        Values that get the darkest and the brightest colour.
    """
    low, high = shown
    painted = overlay_rgbx(eight_bit(pixels), anomaly_map, low=low, high=high)
    if threshold is not None and (marked := above(anomaly_map, threshold)).any():
        painted = outline(painted, marked)
    size = (painted.shape[1], painted.shape[0])
    picture = Image.frombuffer("RGBX", size, painted, "raw", "RGBX", 0, 1)
    return jpeg(picture, QUALITY) if kind == "JPEG" else _png(picture.convert("RGB"))


def photograph_jpeg(pixels: np.ndarray) -> bytes:
    """A photograph (H, W, 3) uint8 or uint16 as `read_image` gives it, and so upright."""
    return jpeg(Image.fromarray(eight_bit(pixels)), QUALITY)


def map_png(anomaly_map: np.ndarray) -> bytes:
    """A map (H, W) float32 in [0, 1] as grey of 16 bits: value · 65535, rounded."""
    return _png(Image.fromarray(np.rint(anomaly_map * np.float32(65535)).astype(np.uint16)))


def mask_png(anomaly_map: np.ndarray, threshold: float) -> bytes:
    """The pixels of a map (H, W) above a threshold as grey of 8 bits: 255, all others 0."""
    return _png(Image.fromarray(above(anomaly_map, threshold).astype(np.uint8) * 255))


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    # Level 1 makes maps of 16 bits no larger than 6, in two thirds of the time.
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()
