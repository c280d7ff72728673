"""Opening picture files: which formats, how large, and which way up.

The files may be a stranger's. Pillow looks at content, not at names, and some formats that it knows
start other programs (EPS starts Ghostscript): only those that a name may promise are tried. What a
header claims is checked before memory is asked for.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spg_pipe.errors import SpgError
from spg_pipe.images import tiff
from spg_pipe.images.files import IMAGE_EXTENSIONS, read_file

MEGAPIXELS = 100
"""Of an image at most, unless `LIMIT` says otherwise: 10 kB of PNG can unfold to that."""
LIMIT = "SPG_MAX_MEGAPIXELS"
"""The environment variable that allows larger images."""
_BYTES_A_PIXEL = 25
"""Of memory, that scoring an image takes."""
# What a PNG holds if it has an orientation: EXIF, or XMP in clear text or compressed.
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation", b"XML:com.adobe.xmp\0\1")
_OPENING = Lock()
# What Pillow logs of a damaged file would stand beside our message.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class UnusableFileError(SpgError):
    """What a file holds cannot be used, at whatever try; `reason` ends a sentence about it.

    Whatever may pass (no memory, no permission, a disk that is gone) is a plain SpgError.
    """

    def __init__(self, name: str, reason: str, advice: str = "Repair or remove it.") -> None:
        super().__init__(f"{name} {reason}. {advice}")
        self.reason = reason


class TooManyPixelsError(UnusableFileError):
    """A picture of more pixels than are decoded, by its header."""

    def __init__(self, name: str, pixels: int, limit: int) -> None:
        self.pixels = pixels
        super().__init__(
            name,
            f"has {pixels} pixels, more than the {limit // 10**6} million that are read; if you "
            f"trust it and {-(-pixels * _BYTES_A_PIXEL // 10**6)} MB of memory are free, set the "
            f"environment variable {LIMIT}={-(-pixels // 10**6)} and run the command again",
            "Otherwise cut it into several files, or remove it.",
        )


@dataclass(frozen=True)
class Picture:
    """An image file that was opened; its pixels are decoded when they are asked for."""

    name: str
    """For messages: `The image parts/0.png`."""
    exif: bool
    """Whether its EXIF orientation is undone; a TIFF's own tag always is."""
    content: bytes
    image: Image.Image
    tags: tiff.Tags
    stored_size: tuple[int, int]
    """(Width, height) in pixels before any turning."""

    @cached_property
    def orientation(self) -> int:
        """1 (upright) to 8, as EXIF counts; 0 if its EXIF data cannot be read."""
        # Pillow decodes every PNG to look for it, 20 ms at 900 pixels, because it may stand behind
        # the pixels.
        if self.image.format == "PNG" and not any(tag in self.content for tag in _PNG_EXIF):
            return 1
        try:
            tags = self.image.getexif()
            turn = tiff.number(tags.get(ExifTags.Base.Orientation, 1))
        except MemoryError:
            raise
        except Exception:  # damaged EXIF data raise a dozen unrelated types
            return 0
        cut_off = _is_cut_off(self.image.info.get("exif", b""))
        return turn if 2 <= turn <= 8 else int(not cut_off)

    @property
    def turn(self) -> int:
        """The orientation that is undone; 1 where none is."""
        return max(self.orientation, 1) if self.exif or self.image.format == "TIFF" else 1

    @property
    def size(self) -> tuple[int, int]:
        """(Height, width) in pixels after turning, from the header alone."""
        width, height = self.stored_size
        return (width, height) if self.turn >= 5 else (height, width)

    @cached_property
    def upright(self) -> Image.Image:
        """The image, decoded and turned. Errors as of `open_picture`."""
        with _library(self.name):
            if self.turn > 1:
                # Whatever its type was.
                self.image.getexif()[ExifTags.Base.Orientation] = self.turn
                ImageOps.exif_transpose(self.image, in_place=True)
            self.image.load()
            return self.image

    def values(self, *modes: str) -> np.ndarray:
        """`upright` as an array of its own, (H, W) or (H, W, channels), any dtype.

        Converted to each of Pillow's `modes` in turn. Errors as of `open_picture`.
        """
        image = self.upright
        with _library(self.name):
            for mode in modes:
                image = image if image.mode == mode else image.convert(mode)
            return np.array(image)


def open_picture(path: Path, what: str, *, exif: bool, content: bytes | None = None) -> Picture:
    """The picture in a file.

    Parameters
    ----------
    what
        "image" or "mask", for messages.
    exif
        Whether its EXIF orientation is undone.
    content
        The whole file, if it was read before.

    Raises
    ------
    UnusableFileError
        The content is damaged, of no known format, or too large.
    SpgError
        The file cannot be opened, or memory is short: its content is not to blame.
    """
    content = read_file(path, what) if content is None else content
    return picture_in(content, f"The {what} {path}", exif)


def picture_in(content: bytes, name: str, exif: bool) -> Picture:
    """The picture in a file's content; as `open_picture`."""
    with _library(name):
        try:
            image: Image.Image | None = _opened(content)
            tags: tiff.Tags = getattr(image, "tag_v2", {})
        except UnidentifiedImageError:
            image, tags = None, tiff.read_tags(content)
            if not tags:
                raise
        size = image.size if image else (0, 0)
        if tags:  # Pillow may have turned the size
            size = (tiff.number(tags.get(tiff.WIDTH)), tiff.number(tags.get(tiff.LENGTH)))
            tiff.require_faithful(tags)
        _require_few(size[0] * size[1], name)
        if image is None:
            image = Image.fromarray(tiff.packed_values(content, tags))
            image.format = "TIFF"
            image.getexif()[ExifTags.Base.Orientation] = tags.get(tiff.ORIENTATION, 1)
        elif image.format == "FITS" and b"BZERO" in content[:28800]:
            raise ValueError("a FITS file with an offset, BZERO: convert it to PNG or TIFF")
        return Picture(name, exif, content, image, tags, size)


@contextmanager
def _library(name: str) -> Iterator[None]:
    """Whatever a library raises of a picture becomes one message; only calls of it stand within."""
    try:
        yield
    except SpgError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise SpgError(
                f"{name} cannot be read: there is not enough memory. Run the command again with "
                f"other programs closed. If it is the same file each time, that may be damaged: "
                f"copy it again from its source, or remove it."
            ) from error
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image of a known format" if unknown else str(error)
        advice = (
            "Convert it, as with `magick in.tif out.png`."
            if isinstance(error, tiff.UndecodedError)
            else "It is expected to be a complete image file: copy it again from its source, or "
            "remove it."
        )
        reason = f"cannot be read ({reason or type(error).__name__})"
        raise UnusableFileError(name, reason, advice) from error


def _opened(content: bytes) -> Image.Image:
    """The header of a picture of a promised format, of whatever size.

    Pillow's own limit on pixels, which is the whole process's, is lifted meanwhile alone.
    """
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(BytesIO(content), formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_cut_off(exif: bytes) -> bool:
    """Whether EXIF data end before their first directory does, which Pillow only warns of."""
    data = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    return start + 2 + 12 * int.from_bytes(data[start : start + 2], order) > len(data) > 0


def pixel_limit() -> int:
    """Pixels of an image at most. SpgError if `LIMIT` is set to something else than a number."""
    stated = os.environ.get(LIMIT, "").strip() or str(MEGAPIXELS)
    if not re.fullmatch(r"[1-9][0-9]{0,6}", stated):
        raise SpgError(
            f"The environment variable {LIMIT} is {stated!r}: expected is a whole number of "
            f"megapixels, such as 400. Set it so, or unset it for {MEGAPIXELS}."
        )
    return int(stated) * 10**6


def _require_few(pixels: int, name: str) -> None:
    """TooManyPixelsError for more pixels than `pixel_limit`."""
    if pixels > (limit := pixel_limit()):
        raise TooManyPixelsError(name, pixels, limit)


@cache
def _formats() -> list[str]:
    """Of the formats that this build of Pillow knows those that the endings of images stand for."""
    Image.init()
    promised = {Image.EXTENSION.get(ending) for ending in IMAGE_EXTENSIONS}
    return [name for name in Image.ID if name in promised]
