"""Picture files written by hand, byte by byte: what Pillow does not write."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

MAX_SAMPLE, ORIENTATION, SAMPLE_FORMAT = 281, 274, 339
_INLINE = {1: "B", 2: "s", 3: "H", 4: "I", 7: "B"}


def tiff(
    data: bytes,
    shape: tuple[int, ...],
    *,
    bits: int = 8,
    photometric: int = 1,
    order: str = "<",
    compression: int = 1,
    extra: Sequence[tuple[int, int, int]] = (),
) -> bytes:
    """A TIFF of one strip; `extra` tags as (tag, type, value), one value each."""
    height, width, *channels = shape
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, compression),
        (262, 3, photometric),
        (273, 4, 0),
        (277, 3, *(channels or [1])),
        (278, 4, height),
        (279, 4, len(data)),
        *extra,
    ]
    body = struct.pack(order + "H", len(tags))
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, value in sorted(tags):
        number = start if tag == 273 else value
        packed = struct.pack(order + _INLINE[kind], bytes([number]) if kind == 2 else number)
        body += struct.pack(order + "HHI", tag, kind, 1) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + body + bytes(4) + data


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples without a gap, highest bit first, each row padded to a byte."""
    single = (values[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def png(values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 16 bits; other chunks stand before the pixels.

    Grey (H, W), grey and opacity (H, W, 2) or RGB (H, W, 3).
    """
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    size = struct.pack(">II", values.shape[1], values.shape[0])
    header = size + bytes([16, {1: 0, 2: 4, 3: 2}[values[0, 0].size], 0, 0, 0])
    return png_of((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def empty_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    header = struct.pack(">II", width, height) + bytes([8, 0, 0, 0, 0])
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))


def jpeg_with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """A JPEG with an EXIF block as its first segment; `exif` begins with II or MM."""
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def exif_of(kind: int, count: int, value: bytes) -> bytes:
    """EXIF data with nothing but an orientation of some type."""
    head = b"II*\0" + struct.pack("<IHHHI", 8, 1, ORIENTATION, kind, count)
    return head + value.ljust(4, b"\0") + bytes(4)
