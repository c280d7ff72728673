"""Images in memory are read as their files are, or refused with what was expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spg_pipe.errors import SpgError
from spg_pipe.images.in_memory import pixels_of
from spg_pipe.images.reading import read_image


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (6, 5), np.uint8),
        ("1", (6, 5), np.uint8),
        ("P", (6, 5, 3), np.uint8),
        ("LA", (6, 5, 2), np.uint8),
        ("RGBA", (6, 5, 4), np.uint8),
        ("I;16", (6, 5), np.uint16),
    ],
)
def test_a_pil_image_is_read_as_its_file(mode, shape, dtype, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    picture = Image.fromarray(values)
    picture = picture.convert(mode) if mode in ("1", "P") else picture
    assert picture.mode == mode
    picture.save(tmp_path / "x.png")
    wanted = read_image(tmp_path / "x.png", exif=True)
    np.testing.assert_array_equal(pixels_of(picture, exif=True), wanted)


def test_a_pil_images_exif_orientation_is_undone_unless_the_protocol_ignores_it() -> None:
    picture = Image.new("RGB", (8, 4))
    picture.getexif()[0x0112] = 6
    assert pixels_of(picture, exif=True).shape == (8, 4, 3)
    assert pixels_of(picture, exif=False).shape == (4, 8, 3)


def test_grey_is_repeated_and_floats_become_16_bits() -> None:
    grey = np.array([[0, 0.5], [1, 0.25]])
    pixels = pixels_of(grey, exif=True)
    assert (pixels.shape, pixels.dtype) == ((2, 2, 3), np.uint16)
    assert pixels[..., 0].tolist() == [[0, 32768], [65535, 16384]]
    assert (pixels == pixels[..., :1]).all()
    tensor = torch.from_numpy(grey)[None]
    for same in (tensor, tensor.bfloat16(), grey.astype(np.float16)):
        np.testing.assert_array_equal(pixels_of(same, exif=True), pixels)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((2, 3, 4), np.uint8), r"array of shape \(2, 3, 4\)"),
        (np.zeros((1, 2, 3, 3), np.uint8), r"array of shape \(1, 2, 3, 3\)"),
        (np.zeros((0, 3), np.uint8), r"array of shape \(0, 3\)"),
        (np.zeros((2, 3), np.int64), "array of int64"),
        (np.zeros((2, 3), bool), "array of bool"),
        (np.full((2, 3), 255.0), "floats from 255 to 255"),
        (np.full((2, 3), -0.1), "floats from -0.1"),
        (np.array([[np.nan, 0.5]]), "floats from nan"),
        (torch.zeros(2, 3, 3), r"tensor of shape \(2, 3, 3\)"),
        (torch.zeros(1, 3, 4, 4), r"tensor of shape \(1, 3, 4, 4\)"),
        ([[1, 2], [3, 4]], "a list"),
    ],
)
def test_what_is_no_image_is_an_error_that_says_what_was_expected(image, found: str) -> None:
    with pytest.raises(SpgError, match=f"{found}.*Expected is a path, a PIL image, a NumPy array"):
        pixels_of(image, exif=True)


def test_a_pil_image_of_another_mode_is_an_error() -> None:
    with pytest.raises(SpgError, match=r"has the mode CMYK\. Convert it to RGB"):
        pixels_of(Image.new("CMYK", (2, 2)), exif=True)
