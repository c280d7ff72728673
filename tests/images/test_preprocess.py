"""Preprocessing and mask resizing where the reference has no numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spg_pipe.images.preprocess import Preprocess, preprocess, resize_mask

ONES = (1.0, 1.0, 1.0)
ZEROS = (0.0, 0.0, 0.0)
IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
ORDERS = [("float", "bilinear"), ("float", "bicubic"), ("uint8", "bilinear"), ("uint8", "bicubic")]


def unit_spec(size, order, interpolation):
    return Preprocess(size, order, interpolation, ZEROS, ONES)


@pytest.mark.parametrize(("order", "interpolation"), ORDERS)
def test_output_is_contiguous_float32_channels_first(order, interpolation):
    out = preprocess(IMAGE, unit_spec(16, order, interpolation))
    assert out.shape == (3, 16, 16)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    assert out.flags.writeable


@pytest.mark.parametrize(("order", "interpolation"), ORDERS)
def test_the_size_already_right_changes_no_value(order, interpolation):
    square = IMAGE[:32, :32]
    out = preprocess(square, unit_spec(32, order, interpolation))
    assert np.allclose(out, square.transpose(2, 0, 1) / 255.0, atol=1e-6)


def test_mean_and_std_are_applied_by_channel():
    grey = np.full((8, 8, 3), 51, np.uint8)
    spec = Preprocess(4, "float", "bilinear", (0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
    expected = [(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 2.0]
    assert np.allclose(preprocess(grey, spec)[:, 0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_float_order_agrees_with_pillows_float_resize(interpolation):
    out = preprocess(IMAGE, unit_spec(24, "float", interpolation))
    resample = Image.Resampling[interpolation.upper()]
    for channel in range(3):
        plane = Image.fromarray((IMAGE[:, :, channel] / 255.0).astype(np.float32))
        assert np.allclose(out[channel], np.asarray(plane.resize((24, 24), resample)), atol=2e-5)


@pytest.mark.parametrize(("order", "interpolation"), ORDERS)
def test_16_bit_is_scaled_by_its_range(order, interpolation):
    wide = IMAGE.astype(np.uint16) * 257
    spec = unit_spec(20, order, interpolation)
    assert np.allclose(preprocess(wide, spec), preprocess(IMAGE, spec), atol=1e-6)


def test_the_input_is_left_alone_and_may_be_read_only():
    image = IMAGE.copy()
    image.flags.writeable = False
    for order, interpolation in ORDERS:
        preprocess(image, unit_spec(8, order, interpolation))
    assert np.array_equal(image, IMAGE)


def test_resize_mask_takes_any_type_and_both_kinds_of_size():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 30:45] = 7
    out = resize_mask(mask, 20)
    assert out.shape == (20, 20)
    assert out.dtype == np.uint8
    assert set(np.unique(out)) == {0, 1}
    for same in (mask > 0, mask.astype(np.int64), mask * 30):
        assert np.array_equal(resize_mask(same, 20), out)
    assert resize_mask(mask, (10, 30)).shape == (10, 30)
    assert np.array_equal(resize_mask(mask, (40, 60)), mask > 0)


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 40)] * 3, st.sampled_from([0, 1]))
def test_a_uniform_mask_stays_uniform_at_any_size(height, width, size, value):
    out = resize_mask(np.full((height, width), value, np.uint8), size)
    assert (out == value).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 255), st.sampled_from(ORDERS))
def test_a_uniform_image_stays_uniform_at_any_size(height, width, value, order):
    image = np.full((height, width, 3), value, np.uint8)
    out = preprocess(image, unit_spec(9, *order))
    assert np.allclose(out, value / 255.0, atol=1e-6)
