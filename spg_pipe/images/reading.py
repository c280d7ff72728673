"""Images and masks: from a file to arrays.

Decoding is strict: a truncated file is an error, never a half-grey image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spg_pipe.images.decoding import Picture, UnusableFileError, opened
from spg_pipe.images.files import mask_files
from spg_pipe.images.samples import levels, tone_curve, unstated_peak, with_tones


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
        Of a format that `files.IMAGE_EXTENSIONS` stand for.
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
