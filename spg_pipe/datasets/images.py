"""Images and masks: from a file to what a backbone and a metric take.

Decoding is strict: a truncated file is an error, never a half-grey image. The two orders of
preprocessing (docs/method.md §1) differ by up to 0.016 in normalised units, so the order is part
of the specification, not a detail.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from spg_pipe.errors import SpgError

T = TypeVar("T")
# What a PNG holds if it has an orientation: EXIF, or XMP in clear text or compressed.
_PNG_ORIENTATION = (
    b"eXIf",
    b"Raw profile type exif",
    b"tiff:Orientation",
    b"XML:com.adobe.xmp\0\1",
)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a backbone's input (docs/method.md §1)."""

    size: int
    """Side S of the square input in pixels; the aspect ratio is not kept."""
    order: Literal["float", "uint8"]
    """`float`: scale to [0, 1], then resize (DINOv3). `uint8`: resize 8-bit pixels first (CLIP)."""
    interpolation: Literal["bilinear", "bicubic"]
    """Filter of the resize, always with antialias."""
    mean: tuple[float, float, float]
    """Per-channel mean that is subtracted, in units of [0, 1]."""
    std: tuple[float, float, float]
    """Per-channel deviation to divide by, in units of [0, 1]."""


def read_image(path: Path, *, exif: bool) -> np.ndarray:
    """Decode an image file to RGB.

    Transparency is dropped (the colour below it stays), palettes are looked up, grey is repeated
    three times, of several frames the first is taken. Pillow decodes 16-bit colour to 8 bits;
    16-bit grey keeps its range.

    Parameters
    ----------
    path
        Any format that Pillow reads.
    exif
        Turn the image as its EXIF orientation says. Benchmark layouts ignore it
        (docs/method.md §5). A TIFF's own orientation tag is always obeyed, by Pillow.

    Returns
    -------
    ndarray, (H, W, 3)
        uint8, or uint16 for a 16-bit file.

    Raises
    ------
    SpgError
        The file is missing, damaged, truncated, too large or of a kind without a clear range.
    """
    return _decode(path, "image", exif, lambda image: _to_rgb(image, path))


def read_mask(path: Path, *, exif: bool) -> np.ndarray:
    """Decode a mask file: every value above 0 is a defect.

    Colour masks count where any channel is above 0, transparent pixels are background. A palette
    mask counts by its index (as VisA's do), unless index 0 is a colour and another one black.

    Returns
    -------
    ndarray, (H, W)
        uint8 in {0, 1}.

    Raises
    ------
    SpgError
        As for `read_image`.
    """
    return _decode(path, "mask", exif, _to_binary)


def stored_size(file: bytes, *, exif: bool) -> tuple[int, int]:
    """Size of an encoded image as `read_image` would return it, from its header alone.

    (Height, width) in pixels. `file` is the whole file, `exif` as for `read_image`.
    """
    with Image.open(BytesIO(file)) as image:
        width, height = image.size
        # Pillow has turned a TIFF's size already. It decodes every PNG to look for an orientation,
        # 20 ms at 900 pixels, because that may stand behind the pixels.
        may = image.format != "PNG" or any(tag in file for tag in _PNG_ORIENTATION)
        tags = image.getexif() if exif and image.format != "TIFF" and may else {}
    turned = tags.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


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
    resized = Image.fromarray(image).resize((spec.size, spec.size), resample)
    channels_first = np.asarray(resized).transpose(2, 0, 1)
    return np.divide(channels_first, 255, dtype=np.float32, order="C")


def _decode(path: Path, what: str, exif: bool, convert: Callable[[Image.Image], T]) -> T:
    """Open, decode fully, turn and convert; every failure becomes a message that names the file."""
    try:
        with Image.open(path) as image:
            if exif:
                ImageOps.exif_transpose(image, in_place=True)
            return convert(image)
    except SpgError:
        raise
    except FileNotFoundError:
        raise SpgError(
            f"The {what} {path} does not exist. If the folder moved, run `spg-pipe prepare` again."
        ) from None
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise SpgError(
            f"The {what} {path} cannot be read ({reason_of(error)}). It is expected to be a "
            f"complete image file of less than {2e-6 * (Image.MAX_IMAGE_PIXELS or 0):.0f} "
            f"megapixels: copy it again from its source, cut it into tiles, or remove it."
        ) from error


def reason_of(error: BaseException) -> str:
    """What Pillow says of a file that it cannot read, in words for a person."""
    if "cannot identify" in str(error):
        return "not an image that Pillow knows"
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return np.repeat(_grey16(np.asarray(image), path)[:, :, None], 3, axis=2)
    if mode in ("P", "PA"):
        image = image.convert("RGBA")  # by way of alpha: transparent entries keep their colours
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey16(values: np.ndarray, path: Path) -> np.ndarray:
    """Grey values of a wide type as uint16: 16-bit integers as they are, floats from [0, 1]."""
    low, high = values.min(), values.max()
    limit = 1.0 if values.dtype.kind == "f" else 65535
    if not (low >= 0 and high <= limit):  # also catches NaN
        raise SpgError(
            f"The image {path} has {values.dtype} values from {low:g} to {high:g}, of unknown "
            f"scale; expected are 0 to {limit:g}. Convert it to an 8- or 16-bit image."
        )
    if values.dtype.kind == "f":
        values = np.round(values * 65535.0)
    return values.astype(np.uint16)


def _to_binary(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode in ("LA", "PA", "RGBA"):
        values = np.asarray(image.convert("RGBA"))
        defect = (values[:, :, :-1].max(axis=2) > 0) & (values[:, :, -1] > 0)
    elif len(image.getbands()) > 1:
        defect = np.asarray(image.convert("RGB")).max(axis=2) > 0
    else:  # 1, L, P, I;16*, I, F
        defect = np.asarray(image) > 0
        if mode == "P" and max((image.getpalette("RGB") or [0])[:3]) > 0:
            # Some programs sort a black-and-white palette by frequency: index 0 is not black.
            lit = np.asarray(image.convert("RGB")).max(axis=2) > 0
            defect = defect if lit.all() else lit
    return defect.astype(np.uint8)
