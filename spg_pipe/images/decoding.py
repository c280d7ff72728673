"""Opening picture files: which formats, how large, and which way up.

The files may be a stranger's. Pillow looks at content, not at names, and some formats that it knows
start other programs (EPS starts Ghostscript): only those that a name may promise are tried. What a
header claims is checked before memory is asked for.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Literal

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
_PAGED = frozenset({"TIFF", "GIF", "PNG", "WEBP", "AVIF", "DCX", "FLI"})
# What a PNG holds if it has an orientation: EXIF, or XMP in clear text or compressed.
_PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation", b"XML:com.adobe.xmp\0\1")


class UnusableFileError(SpgError):
    """What a file holds cannot be used, at whatever try; `reason` ends a sentence about it.

    Whatever may pass (no memory, no permission, a disk that is gone) is a plain SpgError.
    """

    def __init__(self, name: str, reason: str, advice: str) -> None:
        super().__init__(f"{name} {reason}. {advice}")
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """An image file that was opened; its pixels are decoded when they are asked for."""

    image: Image.Image
    content: bytes
    tags: tiff.Tags
    stored_size: tuple[int, int]
    """(Width, height) before any turning."""

    @cached_property
    def orientation(self) -> int:
        """1 (upright) to 8, as EXIF counts; 0 if its EXIF data cannot be read."""
        # Pillow decodes every PNG to look for it, 20 ms at 900 pixels, because it may stand behind
        # the pixels.
        if self.image.format == "PNG" and not any(tag in self.content for tag in _PNG_EXIF):
            return 1
        try:
            turn = tiff.number(self.image.getexif().get(ExifTags.Base.Orientation, 1))
        except MemoryError:
            raise
        except Exception:  # damaged EXIF data raise a dozen unrelated types
            return 0
        cut_off = _is_cut_off(self.image.info.get("exif", b""))
        return turn if 2 <= turn <= 8 else int(not cut_off)

    def turn(self, exif: bool) -> int:
        """The orientation that is undone: with `exif`, and a TIFF's own always."""
        return self.orientation if exif or self.image.format == "TIFF" else 1

    def size(self, exif: bool) -> tuple[int, int]:
        """(Height, width) in pixels after turning, from the header alone."""
        width, height = self.stored_size
        return (width, height) if self.turn(exif) >= 5 else (height, width)

    def upright(self, exif: bool) -> Image.Image:
        """The decoded image, turned; to be called once."""
        if (turn := self.turn(exif)) > 1:
            self.image.getexif()[ExifTags.Base.Orientation] = turn  # whatever its type was
            ImageOps.exif_transpose(self.image, in_place=True)
        self.image.load()
        return self.image

    @property
    def pages(self) -> int:
        """Pages or frames; 2 if there are several that cannot be counted."""
        if self.image.format not in _PAGED or not getattr(self.image, "is_animated", False):
            return 1
        try:
            return int(getattr(self.image, "n_frames", 2))
        except Exception:  # a later page is damaged
            return 2

    @property
    def lossy(self) -> bool:
        """Whether its compression changes pixels."""
        lossy_webp = self.image.format == "WEBP" and b"VP8 " in self.content[:64]
        return self.image.format in ("JPEG", "MPO", "AVIF") or lossy_webp


@contextmanager
def opened(path: Path, what: str, content: bytes | None = None) -> Iterator[Picture]:
    """The picture in a file; whatever a library raises meanwhile becomes one message.

    Parameters
    ----------
    what
        "image" or "mask", for messages.
    content
        The whole file, if it was read before.

    Raises
    ------
    UnusableFileError
        The content is damaged, of no known format, or too large.
    SpgError
        The file cannot be opened, or memory is short: its content is not to blame.
    """
    name = f"The {what} {path}"
    try:
        picture = open_picture(read_file(path, what) if content is None else content)
        with picture.image:
            yield picture
    except SpgError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise SpgError(
                f"{name} cannot be read: there is not enough memory. Run the command again with "
                f"other programs closed. If it is the same file each time, that may be damaged: "
                f"copy it again from its source, or remove it."
            ) from error
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not an image of a known format" if unknown else str(error)
        raise UnusableFileError(
            name,
            f"cannot be read ({reason or type(error).__name__})",
            "It is expected to be a complete image file: copy it again from its source, or remove "
            "it.",
        ) from error


def open_picture(content: bytes) -> Picture:
    """The picture in a file's content. Raises whatever Pillow does; `opened` does not."""
    Image.MAX_IMAGE_PIXELS = limit = pixel_limit()  # also of pictures within icons
    try:
        image: Image.Image | None = Image.open(BytesIO(content), formats=_formats())
        tags: tiff.Tags = getattr(image, "tag_v2", {})
    except UnidentifiedImageError:
        image, tags = None, tiff.read_tags(content)
        if not tags:
            raise
    size = image.size if image else (0, 0)
    if tags:  # Pillow may have turned the size
        size = (tiff.number(tags.get(tiff.WIDTH)), tiff.number(tags.get(tiff.LENGTH)))
    if size[0] * size[1] > limit:
        raise Image.DecompressionBombError(f"{size[0] * size[1]} pixels")
    if image is None:
        image = Image.fromarray(tiff.packed_values(content, tags))
        image.format = "TIFF"
        image.getexif()[ExifTags.Base.Orientation] = tags.get(tiff.ORIENTATION, 1)
    elif image.format == "FITS" and b"BZERO" in content[:28800]:
        raise ValueError("a FITS file with an offset, BZERO: convert it to PNG or TIFF")
    return Picture(image, content, tags, size)


def pixel_limit() -> int:
    """Pixels of an image at most. SpgError if `LIMIT` is set to something else than a number."""
    stated = os.environ.get(LIMIT, "").strip() or str(MEGAPIXELS)
    if not re.fullmatch(r"[1-9][0-9]{0,6}", stated):
        raise SpgError(
            f"The environment variable {LIMIT} is {stated!r}: expected is a whole number of "
            f"megapixels, such as 400. Set it so, or unset it for {MEGAPIXELS}."
        )
    return int(stated) * 10**6


def _too_large(name: str, message: str) -> UnusableFileError:
    """The error for more pixels than `pixel_limit`; they are the first number in a message."""
    pixels = int(re.findall(r"\d+", message)[0])
    return UnusableFileError(
        name,
        f"has {pixels} pixels, more than the {pixel_limit() // 10**6} million that are read; if "
        f"you trust it and {pixels * _BYTES_A_PIXEL / 1e9:.1f} GB of memory are free, set the "
        f"environment variable {LIMIT}={-(-pixels // 10**6)} and run the command again",
        "Otherwise cut it into several files, or remove it.",
    )


def _is_cut_off(exif: bytes) -> bool:
    """Whether EXIF data end before their first directory does, which Pillow only warns of."""
    data = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    return start + 2 + 12 * int.from_bytes(data[start : start + 2], order) > len(data) > 0


@cache
def _formats() -> list[str]:
    """Of the formats that this build of Pillow knows those that the endings of images stand for."""
    Image.init()
    promised = {Image.EXTENSION.get(ending) for ending in IMAGE_EXTENSIONS}
    return [name for name in Image.ID if name in promised]
