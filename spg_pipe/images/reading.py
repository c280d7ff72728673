"""Images and masks: from a file to arrays.

Decoding is strict: a truncated file is an error, never a half-grey image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spg_pipe.images import tiff
from spg_pipe.images.annotations import annotated, drawn, drawn_size
from spg_pipe.images.decoding import Picture, UnusableFileError, open_picture, picture_in
from spg_pipe.images.files import mask_files, read_file
from spg_pipe.images.samples import (
    FULL,
    integers,
    levels,
    stated_white,
    tone_curve,
    unstated_peak,
    with_tones,
)

_PAGED = frozenset({"TIFF", "GIF", "PNG", "WEBP", "AVIF", "DCX", "FLI"})
_LOSSY = frozenset({"JPEG", "MPO", "AVIF"})


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
    picture = open_picture(path, "image", exif=exif, content=content)
    rgb = levels(picture, white)
    if rgb is None:
        # By way of alpha: a palette's transparent entries keep their colours.
        rgb = picture.values(*(["RGBA"] if picture.image.mode in ("P", "PA") else []), "RGB")
    if rgb.ndim == 2:
        rgb = np.repeat(rgb[:, :, None], 3, axis=2)
    tones = tone_curve(picture.image.info.get("icc_profile"))
    return rgb if tones is None else with_tones(rgb, tones)


def read_mask(path: Path, *, exif: bool, content: bytes | None = None) -> np.ndarray:
    """Decode a mask file, or the union of a folder's mask files: every value above 0 is a defect.

    Or draw one of an annotation file (`images.annotations`).

    Colour masks count where any channel is above 0, transparent pixels are background. A palette
    mask counts by its index (as VisA's do), unless index 0 is a colour and another one black. An
    `SpgError` as of `read_image`; for a folder also if its masks differ in size or there is none.

    Returns
    -------
    ndarray, (H, W)
        uint8 in {0, 1}.
    """
    if path.is_dir():
        masks = [read_mask(file, exif=exif) for file in mask_files(path)]
        if len({mask.shape for mask in masks}) != 1:
            reason = "holds masks of several sizes" if masks else "is a folder without an image"
            raise UnusableFileError(f"The mask {path}", reason, "Complete or remove it.")
        return np.maximum.reduce(masks)
    if annotated(path):
        try:
            return drawn(content or read_file(path, "mask"))
        except ValueError as error:
            raise UnusableFileError(f"The mask {path}", str(error)) from error
    return _to_binary(open_picture(path, "mask", exif=exif, content=content))


def read_header(path: Path, what: str, *, exif: bool, content: bytes | None = None) -> Header:
    """What a file says of its picture; pixels are decoded of 16-bit images alone, for their peak.

    An `SpgError` as of `read_image`.

    Parameters
    ----------
    what
        "image" or "mask".
    exif, content
        As for `read_image`.
    """
    if what == "mask" and annotated(path):
        size = drawn_size(content or read_file(path, what))
        return Header(size, orientation=1, turn=1, pages=1, lossy=False, toned=False, peak=None)
    picture = open_picture(path, what, exif=exif, content=content)
    lossy_webp = picture.image.format == "WEBP" and b"VP8 " in picture.content[:64]
    return Header(
        size=picture.size,
        orientation=picture.orientation,
        turn=picture.turn,
        pages=_pages(picture.image),
        lossy=lossy_webp or picture.image.format in _LOSSY,
        toned=tone_curve(picture.image.info.get("icc_profile")) is not None,
        peak=unstated_peak(picture) if what == "image" else None,
    )


def _pages(image: Image.Image) -> int:
    """Pages or frames; 2 if there are several that cannot be counted."""
    try:
        several = image.format in _PAGED and getattr(image, "is_animated", False)
        return int(getattr(image, "n_frames", 2)) if several else 1
    except Exception:  # a later page is damaged
        return 2


def _to_binary(picture: Picture) -> np.ndarray:
    # Of its own opening: beyond 8 bits, whose low bytes Pillow drops of colour.
    deep = integers(picture_in(picture.content, picture.name, picture.exif))
    image = picture.upright
    if image.mode in ("LA", "PA", "RGBA"):
        values = picture.values("RGBA")
        colours = values[:, :, :-1] if deep is None else np.atleast_3d(deep)
        defect = (colours.max(axis=2) > 0) & (values[:, :, -1] > 0)
    elif len(image.getbands()) > 1:
        defect = (picture.values("RGB") if deep is None else deep).max(axis=2) > 0
    elif deep is not None and picture.tags.get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO:
        defect = deep < (stated_white(picture, deep) or FULL)
    else:  # 1, L, P, I;16*, I, F
        values = picture.values()
        if (values < 0).any() or (
            image.mode == "F" and picture.tags.get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO
        ):
            reason = "has values below 0, from 2³¹ up, or floats whose white is 0"
            raise UnusableFileError(picture.name, reason, "Save it with 8 bits, 0 as background.")
        defect = values > 0
        if image.mode == "P" and max((image.getpalette("RGB") or [0])[:3]) > 0:
            # Some programs sort a black-and-white palette by frequency: index 0 is not black.
            lit = picture.values("RGB").max(axis=2) > 0
            defect = defect if lit.all() else lit
    return defect.astype(np.uint8)
