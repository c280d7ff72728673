"""TIFF: the tags that say what values mean, and samples that Pillow does not decode."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
OFFSETS, ORIENTATION, SAMPLES, COUNTS, MAX_SAMPLE, FORMAT = 273, 274, 277, 279, 281, 339
PLANES = 284
WHITE_IS_ZERO, LOWEST_BIT_FIRST, SIGNED, FLOAT, SEPARATE = 0, 2, 2, 3, 2
"""Values of `PHOTOMETRIC`, `FILL_ORDER`, `FORMAT` twice and `PLANES`."""

Tags = Mapping[int, Any]
"""Of the first page, by their numbers in TIFF 6.0; empty for other files."""


class UndecodedError(ValueError):
    """A kind of TIFF that is none of those that are read."""


def read_tags(file: bytes) -> Tags:
    """The tags of a TIFF, whatever its samples are."""
    if file[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    stream = BytesIO(file)
    tags = ImageFileDirectory_v2(stream.read(8))
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def number(value: object) -> int:
    """The first whole number of a tag of any type: a number, a byte or digits; 0 if it has none."""
    first: Any = value[0] if isinstance(value, tuple) and value else value
    if isinstance(first, bytes):
        first = first.strip(b"\0 ")
        first = first.decode() if first.isdigit() else int.from_bytes(first[:1])
    try:
        return int(first.strip("\0 ") if isinstance(first, str) else first)
    except (TypeError, ValueError, ArithmeticError):
        return 0


def require_faithful(tags: Tags) -> None:
    """`UndecodedError` for the samples that Pillow reads as something else, in silence."""
    bits, kind = number(tags.get(BITS)), number(tags.get(FORMAT, 1))
    plain = number(tags.get(COMPRESSION, 1)) == 1
    planes = plain and number(tags.get(PLANES)) == SEPARATE and number(tags.get(SAMPLES)) > 1
    if (bits, kind) in ((16, FLOAT), (8, SIGNED)) or (bits > 8 and planes):
        what = {FLOAT: "floating-point ", SIGNED: "signed "}.get(kind, "")
        raise UndecodedError(
            f"a TIFF with {what}samples of {bits} bits{' in separate planes' if planes else ''}, "
            f"which is not decoded"
        )


def packed_values(file: bytes, tags: Tags) -> np.ndarray:
    """One channel of 9 to 16 bits, uncompressed, in strips: (H, W) uint16, not yet turned.

    `UndecodedError` for any other TIFF, ValueError for one that is cut off or has no pixels.
    """
    bits, width, height = (number(tags.get(tag)) for tag in (BITS, WIDTH, LENGTH))
    samples, packing = (number(tags.get(tag, 1)) for tag in (SAMPLES, COMPRESSION))
    if not (8 < bits <= 16 and samples == packing == 1 and OFFSETS in tags):
        raise UndecodedError(
            f"a TIFF with {bits} bits a sample, {samples} samples a pixel and compression "
            f"{packing}, which is not decoded"
        )
    if min(width, height) < 1:
        raise ValueError(f"a TIFF of {width}×{height} pixels")
    stride, data = -(-width * bits // 8), bytearray()
    for start, length in zip(tags[OFFSETS], tags.get(COUNTS, (len(file),)), strict=False):
        if len(data) < stride * height:
            data += file[start : start + length]
    rows = np.frombuffer(data, np.uint8, stride * height).reshape(height, stride)
    if bits == 16:
        return rows.view("<u2" if file[:1] == b"I" else ">u2").astype(np.uint16)
    order: Any = "little" if number(tags.get(FILL_ORDER)) == LOWEST_BIT_FIRST else "big"
    single = np.unpackbits(rows, axis=1, count=width * bits, bitorder=order)
    values: np.ndarray = np.zeros((height, width), np.uint16)
    for bit in range(bits):
        values = values << 1 | single[:, bit::bits]
    return values
