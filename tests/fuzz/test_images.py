"""Damaged picture files of every format: a picture or one message, and nothing else happens."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import scanned
from pictures import empty_png, exif_of, jpeg_with_exif, packed, png, tiff
from PIL import Image, PngImagePlugin

from fuzz.harness import nothing_outside
from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import LIMIT
from spg_pipe.images.reading import read_header, read_image, read_mask

# As spg_pipe sets them; pytest sets its own.
pytestmark = [
    pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]
NOISE = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole_files() -> list[bytes]:
    """A file of each kind, whole."""
    rgb, grey = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])
    wide = NOISE[..., 0].astype(np.uint16) * 16
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    animated: dict[str, object] = {"save_all": True, "append_images": [grey, grey]}
    plain = [saved(rgb, kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")]
    plain += [saved(rgb, kind) for kind in ("TGA", "SGI", "PCX", "ICO", "JPEG2000", "DDS")]
    plain += [saved(rgb.convert("1"), kind) for kind in ("XBM", "MSP", "TIFF")]
    return [
        *plain,
        *(saved(grey, kind, **animated) for kind in ("GIF", "PNG", "TIFF", "WEBP")),
        saved(rgb.convert("P"), "PNG", pnginfo=text),
        saved(rgb.convert("RGBA"), "TIFF", compression="tiff_lzw"),
        saved(Image.fromarray(wide), "TIFF", compression="tiff_adobe_deflate"),
        jpeg_with_exif(saved(rgb, "JPEG"), exif_of(1, 1, b"\6")),
        png(wide, (b"sBIT", b"\x0c")),
        png(np.dstack([wide] * 3)),
        tiff(packed(wide, 12), wide.shape, bits=12, order=">", extra=[(274, 3, 6)]),
        tiff(wide.tobytes(), wide.shape, bits=16, photometric=0, extra=[(281, 3, 4095)]),
        b"P5 20 24 4095\n" + wide.astype(">u2").tobytes(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        b"%PDF-1.4\n1 0 obj\n<< /Type /Page >>\nendobj\n",
        b"SIMPLE  =                    T".ljust(2880),
    ]


FILES = whole_files()
edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([b"\xff\xff\xff\x7f", bytes(4), b"\0\0\1\0", b"\x7f\xff\xff\xff"]),
        ),
    ),
    max_size=6,
)
sizes = st.integers(0, 2**31 - 1)
damaged = st.one_of(
    st.builds(
        lambda file, changes, end: changed(file, changes)[: round(end * len(file))],
        st.sampled_from(FILES),
        edits,
        st.sampled_from([1.0, 1.0, 0.9, 0.3]),
    ),
    st.builds(empty_png, sizes, sizes),
    st.builds(lambda w, h: b"P5 %d %d 65535\n" % (w, h), sizes, sizes),
    st.builds(lambda w, h, bits: tiff(b"", (h, w), bits=bits), sizes, sizes, st.integers(0, 99)),
    st.binary(max_size=200),
)


def changed(file: bytes, changes: list[tuple[float, bytes]]) -> bytes:
    """Bytes replaced at shares of the length; half of them within the header."""
    content = bytearray(file)
    for number, (share, new) in enumerate(changes):
        at = int(share * (len(content) if number % 2 else min(len(content), 120)))
        content[at : at + len(new)] = new
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzzed")
    Image.new("L", (20, 24)).save(root / "good.png")
    return root


def size_if_readable(path: Path, what: str, exif: bool) -> tuple[int, ...] | None:
    """What header and pixels agree on; None after a message that names the file."""
    try:
        header = read_header(path, what, exif=exif)
        pixels = (read_image if what == "image" else read_mask)(path, exif=exif)
    except SpgError as error:
        return None if str(path) in str(error) else ()
    return header.size if header.size == pixels.shape[:2] else ()


@given(content=damaged, exif=st.booleans())
def test_a_damaged_file_is_a_picture_or_a_message(folder: Path, content: bytes, exif: bool) -> None:
    path = folder / "x.png"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patched, nothing_outside(folder):
        patched.setenv(LIMIT, "1")  # an example then takes milliseconds
        assert size_if_readable(path, "image", exif) != ()
        assert size_if_readable(path, "mask", exif) != ()
        manifest = scanned("set", "folder", folder, skip_bad=True)
        assert len(manifest) + len(manifest.skipped) == 2
