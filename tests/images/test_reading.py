"""Decoding: every mode to RGB or to a binary mask, damage to a message."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from spg_pipe.errors import SpgError
from spg_pipe.images.files import is_image
from spg_pipe.images.reading import read_header, read_image, read_mask

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = RGB[:, :, 0]
ORIENTATION = 0x0112


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm", "tga", "PNG", "JPG"])
def test_rgb_of_every_format_is_what_pillow_decodes(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    saved(Image.fromarray(RGB), path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path, exif=False)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.asarray(Image.open(path)))
    assert np.array_equal(image, RGB) or suffix == "JPG"


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "PA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(tmp_path, mode):
    original = Image.fromarray(RGB).convert(mode)
    path = saved(original, tmp_path / ("image.tif" if mode in ("CMYK", "PA") else "image.png"))
    image = read_image(path, exif=False)
    assert image.shape == (5, 7, 3)
    assert np.array_equal(image, np.asarray(original.convert("RGB")))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "RGBX", "I;16B"])
def test_modes_that_only_other_programs_write_become_rgb(tmp_path, monkeypatch, mode):
    path = saved(Image.fromarray(RGB), tmp_path / "image.png")
    monkeypatch.setattr(Image, "open", lambda _, formats: Image.new(mode, (7, 5)))
    assert read_image(path, exif=False).shape == (5, 7, 3)
    assert read_mask(path, exif=False).shape == (5, 7)


def test_transparency_is_dropped_and_the_colour_below_stays(tmp_path):
    clear = np.dstack([RGB, np.zeros_like(GREY)])
    path = saved(Image.fromarray(clear), tmp_path / "clear.png")
    assert np.array_equal(read_image(path, exif=False), RGB)


def test_palette_with_partly_transparent_entries_gives_its_colours(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    path = saved(palette, tmp_path / "palette.png", transparency=bytes([0, 128]))
    assert read_image(path, exif=False).tolist() == [[[10, 20, 30], [200, 100, 50]]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix):
    values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800
    path = saved(Image.fromarray(values), tmp_path / f"image.{suffix}")
    image = read_image(path, exif=False)
    assert image.dtype == np.uint16
    assert np.array_equal(image, np.repeat(values[:, :, None], 3, axis=2))


def test_16_bit_colour_comes_as_pillows_8_bits(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path = tmp_path / "image.png"
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.array_equal(read_image(path, exif=False), values >> 8)


def test_floats_from_0_to_1_and_a_16_bit_pgm_take_the_full_range(tmp_path):
    path = saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), tmp_path / "image.tif")
    assert read_image(path, exif=False)[0, :, 0].tolist() == [0, 32768, 65535]
    path = tmp_path / "image.pgm"
    path.write_bytes(b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes())
    assert read_image(path, exif=False)[0, :, 0].tolist() == [0, 65535]


@pytest.mark.parametrize("worst", [-0.1, 1.5, 255.0, np.nan])
def test_values_of_unknown_scale_are_refused(tmp_path, worst):
    path = saved(Image.fromarray(np.array([[0, worst]], np.float32)), tmp_path / "image.tif")
    with pytest.raises(SpgError, match=r"image\.tif has float32 values .* expected are 0 to 1"):
        read_image(path, exif=False)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("L", (3, 2), value) for value in (50, 200)]
    path = saved(frames[0], tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    assert (read_image(path, exif=False) == 50).all()


def turned_files(folder: Path, orientation: int) -> list[Path]:
    """The same image with an EXIF orientation in a JPEG, in a PNG, and in a PNG's last chunk."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(RGB)
    jpeg = saved(image, folder / "turned.jpg", exif=exif, quality=100)
    png = saved(image, folder / "turned.png", exif=exif)
    xmp = PngImagePlugin.PngInfo()
    text = f'<x tiff:Orientation="{orientation}"/>'
    xmp.add_itxt("XML:com.adobe.xmp", text, zip=False)
    packed = PngImagePlugin.PngInfo()
    packed.add_itxt("XML:com.adobe.xmp", text, zip=True)
    found = [jpeg, png]
    for name, info in (("xmp", xmp), ("packed", packed)):
        early = saved(image, folder / f"{name}.png", pnginfo=info)
        found += [early, behind_pixels(early, folder / f"{name}-late.png", b"iTXt")]
    return [*found, behind_pixels(png, folder / "late.png", b"eXIf")]


def behind_pixels(png: Path, to: Path, kind: bytes) -> Path:
    """A copy of a PNG with one of its chunks moved behind the pixels."""
    data = png.read_bytes()
    start = data.index(kind) - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    tail = data.index(b"IEND") - 4
    if start < tail and data.index(b"IDAT") < start:
        to.write_bytes(data)
    else:
        to.write_bytes(data[:start] + data[end:tail] + data[start:end] + data[tail:])
    return to


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_or_ignored_as_asked(tmp_path, orientation):
    turns = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }
    for path in turned_files(tmp_path, orientation):
        raw, upright = read_image(path, exif=False), read_image(path, exif=True)
        assert raw.shape == RGB.shape, path.name
        assert upright.shape == turns[orientation].shape, path.name
        if path.suffix == ".png":
            assert np.array_equal(raw, RGB), path.name
            assert np.array_equal(upright, turns[orientation]), path.name
        for exif, pixels in ((False, raw), (True, upright)):
            header = read_header(path, "image", exif=exif)
            assert header.size == pixels.shape[:2], path.name
            assert header.orientation == orientation, path.name


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_tiff_is_turned_by_its_own_tag_once(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(Image.fromarray(RGB), tmp_path / "turned.tif", exif=exif)
    shapes = {read_image(path, exif=e).shape[:2] for e in (False, True)}
    assert shapes == {read_header(path, "image", exif=e).size for e in (False, True)}
    assert shapes == {(7, 5) if orientation == 6 else (5, 7)}


def test_the_mask_is_turned_like_its_image(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    mask = np.zeros((5, 7), np.uint8)
    mask[0, 1] = 255
    path = saved(Image.fromarray(mask), tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_mask(path, exif=False), mask > 0)
    assert np.array_equal(read_mask(path, exif=True), np.rot90(mask, -1) > 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "P"])
def test_every_mask_value_above_0_is_a_defect(tmp_path, mode):
    values = np.array([[0, 1, 3, 255]], np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        image = Image.fromarray(values > 0)
    else:
        image = Image.fromarray(values).convert(mode)
    path = saved(image, tmp_path / "mask.tif")
    mask = read_mask(path, exif=False)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("palette", "expected"),
    [
        ([0, 0, 0, 255, 255, 255, 255, 0, 0], [0, 1, 1]),  # black first: the usual case
        ([255, 255, 255, 0, 0, 0, 255, 0, 0], [1, 0, 1]),  # black is not index 0
        ([0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1]),  # the colours say nothing
        ([9, 9, 9, 1, 2, 3, 255, 0, 0], [0, 1, 1]),  # no black at all
    ],
)
def test_a_palette_mask_counts_by_index_unless_its_colours_say_otherwise(
    tmp_path, palette, expected
):
    image = Image.new("P", (3, 1))
    image.putpalette(palette)
    image.putdata([0, 1, 2])
    path = saved(image, tmp_path / "mask.png")
    assert read_mask(path, exif=False)[0].tolist() == expected


def test_transparent_pixels_of_a_mask_are_background(tmp_path):
    values = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    path = saved(Image.fromarray(values), tmp_path / "mask.png")
    assert read_mask(path, exif=False)[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, suffix, read):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SpgError, match=rf"cut\.{suffix} cannot be read .*copy it again"):
        read(path, exif=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *(
            (c, "cannot be read .not an image of a known format")
            for c in (b"", b"text", b"\x89PNG\r\n\x1a\n")
        ),
        (None, "does not exist"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_a_file_that_is_no_image_or_missing_is_an_error_that_names_it(
    tmp_path, read, content, message
):
    path = tmp_path / "fake.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpgError, match=rf"The (image|mask) .*fake\.png {message}"):
        read(path, exif=True)


def test_image_files_are_known_by_their_extension():
    assert all(is_image(Path(name)) for name in ("a.png", "b.JPG", "c.tiff", "d.webp"))
    assert not any(is_image(Path(name)) for name in ("a.txt", "Thumbs.db", ".hidden.png", "png"))
