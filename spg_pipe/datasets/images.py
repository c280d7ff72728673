"""Images and masks: from a file to what a backbone and a metric take.

Decoding is strict: a truncated file is an error, never a half-grey image. The two orders of
preprocessing (docs/method.md §1) differ by up to 0.016 in normalised units, so the order is part
of the specification, not a detail.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from spg_pipe.artefacts.record import Deviation, Figure, Size
from spg_pipe.datasets.decoding import Picture, UnusableFileError, opened
from spg_pipe.datasets.samples import levels, tone_curve, unstated_peak, with_tones
from spg_pipe.datasets.walk import mask_files


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


@dataclass(frozen=True)
class Header:
    """What a file says of its picture."""

    size: tuple[int, int]
    """(Height, width) in pixels, as `read_image` and `read_mask` return it."""
    orientation: int
    """1 (upright) to 8, as EXIF counts, whether it is undone or not; 0 if it cannot be read."""
    turn: int
    """The orientation that is undone; 1 where none is."""
    pages: int
    """Pages or frames, of which the first is read."""
    lossy: bool
    """Its compression changes pixels."""
    toned: bool
    """Its colour profile changes grey levels."""
    peak: int | None
    """Of an image: the highest value, if it has 16 bits and does not say what is white."""


def read_image(
    path: Path, *, exif: bool, white: int | None = None, content: bytes | None = None
) -> np.ndarray:
    """Decode an image file to RGB.

    Transparency is dropped (the colour below it stays), palettes are looked up, grey is repeated
    three times, of several frames the first is taken. 16-bit grey keeps its range, 16-bit colour
    is reduced to 8 bits. The value of white becomes the highest of the dtype; the grey levels of a
    colour profile become sRGB's.

    Parameters
    ----------
    path
        Of a format that `walk.IMAGE_EXTENSIONS` stand for.
    exif
        Turn the image as its EXIF orientation says. Benchmark layouts ignore it
        (docs/method.md §5). A TIFF's own orientation tag is always obeyed.
    white
        The value of white in the image's set, where a 16-bit file does not say it itself; default
        65535.
    content
        The file's bytes, if they were read before.

    Returns
    -------
    ndarray, (H, W, 3)
        uint8, or uint16 for 16-bit grey.

    Raises
    ------
    UnusableFileError
        The file is damaged, truncated, too large or of a kind without a clear range.
    SpgError
        It is missing or cannot be opened, or memory is short.
    """
    with opened(path, "image", content) as picture:
        pixels = levels(picture, f"The image {path}", exif, white)
        rgb = _eight_bit_rgb(picture.upright(exif)) if pixels is None else pixels
        if rgb.ndim == 2:
            rgb = np.repeat(rgb[:, :, None], 3, axis=2)
        tones = tone_curve(picture.image.info.get("icc_profile"))
        return rgb if tones is None else with_tones(rgb, tones)


def read_mask(path: Path, *, exif: bool, content: bytes | None = None) -> np.ndarray:
    """Decode a mask file, or the union of a folder's mask files: every value above 0 is a defect.

    Colour masks count where any channel is above 0, transparent pixels are background. A palette
    mask counts by its index (as VisA's do), unless index 0 is a colour and another one black.

    Returns
    -------
    ndarray, (H, W)
        uint8 in {0, 1}.

    Raises
    ------
    SpgError
        As for `read_image`; for a folder also if its masks differ in size or there is none.
    """
    if path.is_dir():
        masks = [read_mask(file, exif=exif) for file in mask_files(path)]
        if len({mask.shape for mask in masks}) != 1:
            reason = "holds masks of several sizes" if masks else "is a folder without an image"
            raise UnusableFileError(f"The mask {path}", reason, "Complete or remove it.")
        return np.maximum.reduce(masks)
    with opened(path, "mask", content) as picture:
        return _to_binary(picture, exif)


def read_header(path: Path, what: str, *, exif: bool, content: bytes | None = None) -> Header:
    """What a file says of its picture; pixels are decoded of 16-bit images alone, for their peak.

    Parameters
    ----------
    what
        "image" or "mask".
    exif, content
        As for `read_image`.

    Raises
    ------
    SpgError
        As for `read_image`.
    """
    with opened(path, what, content) as picture:
        return Header(
            size=picture.size(exif),
            orientation=picture.orientation,
            turn=max(picture.turn(exif), 1),
            pages=picture.pages,
            lossy=picture.lossy,
            toned=tone_curve(picture.image.info.get("icc_profile")) is not None,
            peak=unstated_peak(picture, exif) if what == "image" else None,
        )


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


def _eight_bit_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # by way of alpha: transparent entries keep their colours
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_binary(picture: Picture, exif: bool) -> np.ndarray:
    image = picture.upright(exif)
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
