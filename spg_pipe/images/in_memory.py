"""Images that a program has in memory, as `read_image` gives those of files."""

import numpy as np
import torch
from PIL import Image, ImageOps

from spg_pipe.errors import SpgError

InMemory = np.ndarray | torch.Tensor | Image.Image
_EXPECTED = (
    "Expected is a path, a PIL image, a NumPy array (H, W) or (H, W, 3), or a torch tensor "
    "(1, H, W) or (3, H, W), of uint8, uint16 or of floats in [0, 1]."
)


def pixels_of(image: InMemory, *, exif: bool) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 of an image, in which white is the highest value of its type.

    A PIL image of 8 bits loses its transparency; its EXIF orientation is undone with `exif`. Floats
    become 16 bits. An `SpgError` says what was found and what was expected.
    """
    if isinstance(image, Image.Image):
        return _coloured(_of_pillow(ImageOps.exif_transpose(image) if exif else image))
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or len(image) not in (1, 3):
            raise SpgError(f"The image is a tensor of shape {tuple(image.shape)}. {_EXPECTED}")
        values = image.detach().cpu().permute(1, 2, 0)
        return _coloured((values.float() if values.is_floating_point() else values).numpy())
    if isinstance(image, np.ndarray):
        return _coloured(image)
    raise SpgError(f"The image is a {type(image).__name__}. {_EXPECTED}")


def _of_pillow(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("1", "L", "RGB"):
        return np.asarray(image.convert("L") if image.mode == "1" else image)
    if image.mode in ("LA", "P", "PA", "RGBA"):  # by way of alpha: see `read_image`
        return np.asarray(image.convert("RGBA").convert("RGB"))
    raise SpgError(f"The PIL image has the mode {image.mode}. Convert it to RGB, L or I;16.")


def _coloured(values: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1) or (H, W, 3) of any type that is allowed → three channels of integers."""
    shape = values.shape
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in shape:
        raise SpgError(f"The image is an array of shape {shape}. {_EXPECTED}")
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise SpgError(f"The image has floats from {low:g} to {high:g}. {_EXPECTED}")
        values = np.rint(np.multiply(values, 65535, dtype=np.float64)).astype(np.uint16)
    if values.dtype not in (np.uint8, np.uint16):
        raise SpgError(f"The image is an array of {values.dtype}. {_EXPECTED}")
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
