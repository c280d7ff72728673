"""A stranger's files: formats, sizes and failures that pass, each with one message."""

import errno
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from fuzz.harness import nothing_outside
from layouts import scanned, write_mvtec
from pictures import ORIENTATION, empty_png, exif_of, jpeg_with_exif, tiff
from PIL import Image

from spg_pipe.errors import SpgError
from spg_pipe.images import decoding, reading
from spg_pipe.images.decoding import LIMIT, UnusableFileError
from spg_pipe.images.reading import read_header, read_image, read_mask

# As spg_pipe sets them; pytest sets its own.
pytestmark = [
    pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
GOOD = "bottle/test/good/001.png"


def jpeg(height: int = 4, width: int = 6) -> bytes:
    buffer = io.BytesIO()
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    Image.fromarray(ramp.astype(np.uint8)).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()


def test_picture_files_are_opened_in_one_place() -> None:
    package = Path(decoding.__file__).parents[1]
    opening = {p.name for p in package.rglob("*.py") if "Image.open(" in p.read_text()}
    # photographs: scikit-image's, by SHA-256; runner: works without this package.
    assert opening == {"decoding.py", "photographs.py", "runner.py"}


@pytest.mark.parametrize("content", [EPS, b"%PDF-1.4\n", b"\xd7\xcd\xc6\x9a" + bytes(40)])
def test_formats_that_start_programs_are_not_opened(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with nothing_outside(tmp_path), pytest.raises(SpgError, match="not an image of a known"):
            read(path, exif=True)


def test_an_icon_is_no_image_whose_picture_would_be_decoded_unseen(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.ico")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.ico").read_bytes())
    with pytest.raises(UnusableFileError, match="not an image of a known"):
        read_header(tmp_path / "x.png", "image", exif=False)


def test_an_animation_that_is_cut_off_is_one_message_or_an_image(tmp_path):
    path, frames = tmp_path / "x.gif", [Image.new("L", (9, 9), grey) for grey in (9, 99, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    headers = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            headers.append(read_header(path, "image", exif=False).pages)
        except UnusableFileError:
            headers.append(0)
    assert set(headers) == {0, 1, 2} or set(headers) == {0, 1, 2, 3}


def test_a_large_image_is_refused_before_it_is_decoded_with_a_way_out_that_works(
    tmp_path, monkeypatch
):
    path = tmp_path / "line.png"
    for pixels in (13000 * 14000, 30000 * 30000):
        path.write_bytes(empty_png(13000, pixels // 13000))
        with pytest.raises(UnusableFileError) as caught:
            read_image(path, exif=False)
        message = str(caught.value)
        assert (
            f"line.png has {pixels // 13000 * 13000} pixels, more than the 100 million" in message
        )
        setting = message.partition("environment variable ")[2].split()[0]
        name, _, value = setting.partition("=")
        assert name == LIMIT
        monkeypatch.setenv(name, value)
        assert read_header(path, "image", exif=False).size == (pixels // 13000, 13000)
        monkeypatch.delenv(name)


def test_95_megapixels_are_no_attack(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(empty_png(9500, 10000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(path, "image", exif=False).size == (10000, 9500)


def test_the_limit_is_no_setting_of_the_process_and_small_ones_tell_the_memory(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(LIMIT, "1")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    (tmp_path / "x.png").write_bytes(empty_png(1100, 1000))
    with pytest.raises(UnusableFileError, match=r"1100000 pixels.* and 28 MB of .*MEGAPIXELS=2 "):
        read_image(tmp_path / "x.png", exif=False)
    assert Image.MAX_IMAGE_PIXELS == 5


def test_a_fault_of_the_code_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "levels", lambda *_: {}["a bug"])
    (tmp_path / "x.png").write_bytes(empty_png(3, 3))
    with pytest.raises(KeyError, match="a bug"):
        read_image(tmp_path / "x.png", exif=False)


@pytest.mark.parametrize("value", ["many", "0", "-5", "1e9", "9" * 30])
def test_a_limit_that_is_no_number_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv(LIMIT, value)
    (tmp_path / "x.png").write_bytes(empty_png(3, 3))
    with pytest.raises(SpgError, match=f"{LIMIT} is .*whole number of megapixels"):
        read_image(tmp_path / "x.png", exif=False)


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def no_handles(*_: object, **__: object) -> bytes:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("target", "name", "failure", "message"),
    [
        (Image.Image, "load", no_memory, "not enough memory.* other programs"),
        (Path, "read_bytes", no_handles, r"cannot be opened \(Too many open files\).*permissions"),
    ],
)
def test_a_failure_that_passes_is_not_taken_for_a_bad_image(
    tmp_path, monkeypatch, target, name, failure, message
):
    tree = write_mvtec(tmp_path)
    monkeypatch.setattr(target, name, failure)
    with pytest.raises(SpgError, match=message) as caught:
        scanned("m", "mvtec", tree, skip_bad=True)
    assert not isinstance(caught.value, UnusableFileError)
    monkeypatch.undo()
    assert len(scanned("m", "mvtec", tree, skip_bad=True)) == 8


KINDS = {
    "short": (3, 1, b"\6\0"),
    "byte": (1, 1, b"\6"),
    "undefined": (7, 1, b"\6"),
    "ascii": (2, 2, b"6\0"),
    "ascii alone": (2, 1, b"6"),
    "long": (4, 1, b"\6"),
    "signed": (8, 1, b"\6\0"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exif", [False, True])
def test_size_and_pixels_agree_on_an_orientation_of_any_type(tmp_path, kind, exif):
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_with_exif(jpeg(), exif_of(*KINDS[kind])))
    shape = (6, 4) if exif else (4, 6)
    assert read_header(path, "image", exif=exif).size == shape
    assert read_image(path, exif=exif).shape[:2] == shape
    assert read_mask(path, exif=exif).shape == shape


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_tiffs_own_orientation_is_obeyed_whatever_its_type(tmp_path, kind, bits):
    value = ord("6") if kind == 2 else 6
    data, path = bytes(range(24 * bits // 8)), tmp_path / "x.tif"
    path.write_bytes(tiff(data, (4, 6), bits=bits, extra=[(ORIENTATION, kind, value)]))
    assert read_header(path, "image", exif=False).size == (6, 4)
    assert read_image(path, exif=False).shape == (6, 4, 3)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"nonsense" * 9])
def test_damaged_exif_data_leave_the_image_upright_without_a_warning(tmp_path, exif):
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_with_exif(jpeg(), exif))
    assert read_image(path, exif=True).shape == (4, 6, 3)
    assert read_header(path, "image", exif=True).orientation == (0 if exif else 1)


def test_a_mask_may_be_a_folder_of_masks(tmp_path):
    folder = tmp_path / "000"
    folder.mkdir()
    for name, column in (("000.png", 0), ("001.png", 3)):
        part = np.zeros((4, 6), np.uint8)
        part[:, column] = 237
        Image.fromarray(part).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    assert read_mask(folder, exif=False).sum(axis=0).tolist() == [4, 0, 0, 4, 0, 0]
    Image.new("L", (2, 2)).save(folder / "002.png")
    with pytest.raises(UnusableFileError, match="000 holds masks of several sizes"):
        read_mask(folder, exif=False)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(UnusableFileError, match="000 is a folder without an image"):
        read_mask(folder, exif=False)
