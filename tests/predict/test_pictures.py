"""Pictures of a result: heat map, raw map, mask."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from spg_pipe.decision.heat_maps import outline, overlay
from spg_pipe.metrics.operating import above
from spg_pipe.predict.pictures import map_png, mask_png, overlay_picture


@pytest.fixture
def found() -> np.ndarray:
    """A map with a blob."""
    rows, columns = np.mgrid[:60, :90]
    blob = np.exp(-(((rows - 30) / 12) ** 2) - ((columns - 50) / 20) ** 2)
    return blob.astype(np.float32)


def read(content: bytes) -> tuple[Image.Image, np.ndarray]:
    picture = Image.open(io.BytesIO(content))
    return picture, np.asarray(picture)


def test_an_overlay_is_a_jpeg_close_to_what_is_painted(found: np.ndarray) -> None:
    pixels = np.full((60, 90, 3), 128, np.uint8)
    picture, shown = read(overlay_picture(pixels, found, (0.1, 0.9)))
    assert (picture.format, picture.mode) == ("JPEG", "RGB")
    painted = overlay(pixels, found, low=0.1, high=0.9)
    assert np.abs(shown.astype(int) - painted).mean() < 3
    picture, shown = read(overlay_picture(pixels, found, (0.1, 0.9), kind="PNG"))
    assert picture.format == "PNG"
    np.testing.assert_array_equal(shown, painted)


def test_a_threshold_draws_a_line_around_what_is_above_it(found: np.ndarray) -> None:
    pixels = np.full((60, 90, 3), 32896, np.uint16)
    shown = read(overlay_picture(pixels, found, (0.1, 0.9), 0.5, "PNG"))[1]
    painted = overlay(np.full((60, 90, 3), 128, np.uint8), found, low=0.1, high=0.9)
    np.testing.assert_array_equal(shown, outline(painted, above(found, 0.5)))
    assert (shown != painted).any(axis=2).sum() > 100
    shown = read(overlay_picture(pixels, found, (0.1, 0.9), 1.0, "PNG"))[1]
    np.testing.assert_array_equal(shown, painted)


def test_a_raw_map_keeps_values_to_half_a_step_of_16_bits(found: np.ndarray) -> None:
    found[0, :3] = 0, 1, 0.5
    picture, values = read(map_png(found))
    assert (picture.format, picture.mode, values.dtype) == ("PNG", "I;16", np.uint16)
    assert np.abs(values / 65535 - found).max() <= 0.5001 / 65535
    assert values[0, :2].tolist() == [0, 65535]


def test_a_mask_is_what_is_above_the_threshold(found: np.ndarray) -> None:
    picture, values = read(mask_png(found, 0.5))
    assert (picture.format, picture.mode) == ("PNG", "L")
    np.testing.assert_array_equal(values, np.where(above(found, 0.5), 255, 0))
