"""What the values of a picture mean: which is white, and where a colour profile has its greys.

Values of 8 bits go from 0 to 255. A camera's 10, 12 or 14 bits mostly lie in files of 16; which
value is white then stands in the file, or is known of its whole set alone.
"""

import re
import sys
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from spg_pipe.images import tiff
from spg_pipe.images.decoding import Picture, UnusableFileError, picture_in

FULL = 65535
"""White of 16 bits."""
DEPTHS = (8, 10, 12, 14)
"""Bits a sample, below 16, that cameras have."""
_CURVED = 4.0
"""Mean difference from sRGB's greys, in levels of 255, from which on a profile's are converted.
Gamma 2.2, as in Adobe RGB, differs by less."""


def white_of(peak: int | None) -> int | None:
    """White of a set of 16-bit images whose highest value is `peak`; None for 65535.

    The least number of bits that cameras have and the values fit.
    """
    fitting = [2**bits - 1 for bits in DEPTHS if peak and peak < 2**bits]
    return fitting[0] if fitting else None


def unstated_peak(picture: Picture) -> int | None:
    """The highest value of a 16-bit picture whose file does not say what is white; else None."""
    values = integers(picture)
    unstated = values is not None and stated_white(picture, values) is None
    return int(values.max()) if values is not None and unstated else None


def levels(picture: Picture, white: int | None) -> np.ndarray | None:
    """Values beyond 8 bits, turned and scaled: grey (H, W) uint16, or colour (H, W, 3) uint8.

    None of a picture of 8 bits.

    Parameters
    ----------
    white
        The value of white, where the file does not say it; None for 65535.

    Raises
    ------
    UnusableFileError
        The values are of no clear range, or brighter than white.
    """
    values = integers(picture)
    if values is None and picture.image.mode != "F":
        return None
    if values is None:
        values, top = picture.values(), 1.0
    else:
        top = float(stated_white(picture, values) or white or FULL)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):  # also catches NaN
        raise UnusableFileError(
            picture.name,
            f"has {values.dtype} values from {low:g} to {high:g}, of unknown scale; expected are 0 "
            f"to {top:g}",
            "Convert it to an 8- or 16-bit image, and all it is compared with alike.",
        )
    if picture.tags.get(tiff.PHOTOMETRIC) == tiff.WHITE_IS_ZERO:  # of 8 bits Pillow inverts them
        values = np.subtract(top, values)
    if values.ndim == 3 and top == FULL:
        return (values >> 8).astype(np.uint8)  # as Pillow does
    kind = np.uint16 if values.ndim == 2 else np.uint8
    if top != np.iinfo(kind).max:
        values = np.rint(values * (np.iinfo(kind).max / top))
    return values.astype(kind)


@lru_cache(maxsize=32)
def tone_curve(profile: bytes | None) -> np.ndarray | None:
    """Where the grey levels of an ICC profile lie in sRGB: (256,) uint8.

    None if they are about where sRGB has them, and of a profile that is damaged or neither grey nor
    RGB, or is not there.
    """
    if profile is None:
        return None
    greys = np.arange(256, dtype=np.uint8)
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = {"GRAY": "L", "RGB": "RGB"}[source.profile.xcolor_space.strip()]
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        ramp = Image.fromarray(greys[None]).convert(mode)
        turned = ImageCms.profileToProfile(ramp, source, target, outputMode="RGB")
    except Exception:  # whatever LittleCMS finds wrong
        return None
    curve = np.asarray(turned)[0, :, 1]
    return curve if np.abs(curve - greys.astype(float)).mean() > _CURVED else None


def with_tones(pixels: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Pixels of uint8 or uint16 with each channel taken through a `tone_curve`."""
    if pixels.dtype == np.uint8:
        return curve[pixels]
    at = np.linspace(0, FULL, len(curve))
    table = np.rint(np.interp(np.arange(FULL + 1), at, curve * 257.0)).astype(np.uint16)
    return table[pixels]


def integers(picture: Picture) -> np.ndarray | None:
    """Values beyond 8 bits as they are stored, turned: (H, W) int, or (H, W, 3) uint16; or None.

    Pillow reduces 16-bit colour to its high bytes; its low bytes are the high ones of the other
    byte order. It reduces grey with transparency, too: read as colour, that is its four bytes.
    """
    if picture.image.mode == "I" or picture.image.mode.startswith("I;16"):
        return picture.values()
    stored = getattr(picture.image, "tile", [])
    if stored and stored[0].args == "LA;16B":
        vars(picture.image)["tile"] = [tile._replace(args="RGBA") for tile in stored]
        grey = picture.values()[:, :, :2].astype(np.uint16)
        return grey[:, :, 0] << 8 | grey[:, :, 1]
    if not (tiles := _other_byte_order(picture.image)):
        return None
    low = picture_in(picture.content, picture.name, picture.exif)
    vars(low.image)["tile"] = tiles
    high_bytes, low_bytes = (p.values()[:, :, :3] for p in (picture, low))
    return high_bytes.astype(np.uint16) << 8 | low_bytes


def _other_byte_order(image: Image.Image) -> list[Any]:
    """What Pillow's decoder is told about 16-bit RGB, with the bytes exchanged; else nothing."""
    tiles, native = [], {"little": "L", "big": "B"}[sys.byteorder]
    for tile in getattr(image, "tile", []):
        mode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        if not re.fullmatch("RGB[AXa]*;16[BLN]", str(mode)):
            return []
        order = "B" if mode.replace("N", native).endswith("L") else "L"
        tiles.append(tile._replace(args=(mode[:-1] + order, *rest)))
    return tiles


def stated_white(picture: Picture, values: np.ndarray) -> int | None:
    """The value of white in `integers`, if the file says it and no value contradicts it."""
    white, tags = None, picture.tags
    if picture.image.format in ("PPM", "JPEG2000"):
        white = FULL  # Pillow has scaled them by what the file says
    elif picture.image.format == "PNG" and (bits := _significant_bits(picture.content)):
        # They should be the upper ones of 16; some programs fill the lower ones instead.
        lower = values.max() < 2**bits and (values & (2 ** (16 - bits) - 1)).any()
        white = 2**bits - 1 if lower else FULL
    elif bits := tiff.number(tags.get(tiff.BITS)):
        top = tiff.number(tags.get(tiff.MAX_SAMPLE))
        if bits < 16:
            white = 2**bits - 1
        elif top in (2**n - 1 for n in range(8, 17)):  # another number is a statistic
            white = top
        elif bits == 16 and tiff.number(tags.get(tiff.FORMAT)) == tiff.SIGNED:
            white = FULL // 2
    return white if white is None or values.max() <= white else None


def _significant_bits(png: bytes) -> int:
    """What the chunk sBIT says of a PNG of 16 bits; 0 if it does not say."""
    at = png.find(b"sBIT", 0, png.find(b"IDAT"))
    bits = png[at + 4] if at > 0 else 0
    return bits if 8 <= bits <= 16 else 0
