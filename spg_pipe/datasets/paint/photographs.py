"""From a photograph in scikit-image's wheel to many images of one category."""

import hashlib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from PIL import Image

from spg_pipe.datasets.paint.canvas import bilinear
from spg_pipe.datasets.paint.catalogue import Photograph
from spg_pipe.errors import SpgError

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_MAX_ANGLE = np.deg2rad(5.0)
_GAIN = 0.08
_OFFSET = 0.04


def read_photograph(photograph: Photograph) -> np.ndarray:
    """The used part of a photograph: (H, W, 3) float32 in [0, 1], RGB.

    SpgError if scikit-image does not ship the file, or ships another one of that name.
    """
    # The installed files instead of the package: importing skimage takes a second.
    path = Path(str(distribution("scikit-image").locate_file(f"skimage/data/{photograph.file}")))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
    if not sha256.startswith(photograph.sha256):
        raise SpgError(
            f"scikit-image's {photograph.file} has sha256 {sha256}, the demo set is made from "
            f"{photograph.sha256}…. Install scikit-image again (pip install --force-reinstall "
            f"scikit-image), in the version of constraints.txt."
        )
    with Image.open(path) as opened:
        image = opened.convert("RGB").crop(photograph.box)
    size = (round(image.width * photograph.scale), round(image.height * photograph.scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def grey(image: np.ndarray) -> np.ndarray:
    """Luma: (H, W, 3) → (H, W), float32."""
    return np.asarray(image @ _GREY, np.float32)


def view(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut one image: a random place, a small rotation, a mirror, another exposure.

    From a photograph (H, W, 3), both sides at least 1.1 `size` pixels, to (size, size, 3): float32
    in [0, 1].
    """
    angle = rng.uniform(-_MAX_ANGLE, _MAX_ANGLE)
    cos, sin = np.cos(angle), np.sin(angle)
    reach = size / 2 * (abs(cos) + abs(sin))
    height, width = photograph.shape[:2]
    centre_y = rng.uniform(reach, height - 1 - reach)
    centre_x = rng.uniform(reach, width - 1 - reach)
    y, x = np.mgrid[:size, :size].astype(np.float32) - (size - 1) / 2
    where = np.stack([centre_y + cos * y - sin * x, centre_x + sin * y + cos * x])
    image = bilinear(photograph, where, "reflect")
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = image * rng.uniform(1 - _GAIN, 1 + _GAIN) + rng.uniform(-_OFFSET, _OFFSET)
    return np.clip(image, 0, 1).astype(np.float32)
