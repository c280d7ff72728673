"""Resizing in a graph is Pillow's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spg_pipe.deploy.resize import _LOW, axis_shares, largest_side, resized
from spg_pipe.images.preprocess import Preprocess, preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
sides = st.one_of(st.integers(1, 40), st.integers(1, 700))


def pixels_of(height: int, width: int, seed: int, *, harsh: bool) -> np.ndarray:
    """Noise of all values, or of black and white alone, which rings most."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(values > 127, np.uint8(255), np.uint8(0)) if harsh else values


def both(image: np.ndarray, spec: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    return resized(torch.from_numpy(image)[None], spec)[0].numpy(), preprocess(image, spec)


@given(
    sides,
    sides,
    st.sampled_from([1, 14, 32, 96, 128, 224, 256, 336]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.booleans(),
)
def test_8_bit_pixels_are_those_of_pillow(
    height: int, width: int, size: int, interpolation: str, harsh: bool
) -> None:
    image = pixels_of(height, width, height * width, harsh=harsh)
    ours, pillows = both(image, Preprocess(size, "uint8", interpolation, MEAN, STD))  # type: ignore[arg-type]
    np.testing.assert_array_equal(ours, pillows)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(3000, 4), (5, 4000), (20_000, 1), (1, 1)])
def test_large_and_flat_images_too(shape: tuple[int, int], interpolation: str) -> None:
    image = pixels_of(*shape, 0, harsh=True)
    ours, pillows = both(image, Preprocess(64, "uint8", interpolation, MEAN, STD))  # type: ignore[arg-type]
    np.testing.assert_array_equal(ours, pillows)


@pytest.mark.parametrize("size", [1, 16, 224, 256, 336])
def test_sums_are_exact_up_to_the_largest_side(size: int) -> None:
    spec = Preprocess(size, "uint8", "bicubic", MEAN, STD)
    shares = axis_shares(largest_side(size), spec)[1]
    pixels = int((shares.high != 0).sum(dim=1).max())
    assert 255 * (_LOW // 2) * pixels < 2**24


@given(sides, sides, st.sampled_from([16, 32, 224]), st.sampled_from(["bilinear", "bicubic"]))
def test_float_pixels_are_those_of_pytorch_to_rounding(
    height: int, width: int, size: int, interpolation: str
) -> None:
    image = pixels_of(height, width, height + width, harsh=False)
    ours, torchs = both(image, Preprocess(size, "float", interpolation, MEAN, STD))  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, torchs, atol=2e-4)


def test_an_upright_image_is_resized_across_first_whatever_pillow_prefers() -> None:
    """Pillow 13 begins with the columns of a tall image, which rounds otherwise."""
    image = pixels_of(400, 50, 1, harsh=False)
    across = Image.fromarray(image).resize((32, 400), Image.Resampling.BICUBIC)
    expected = np.asarray(across.resize((32, 32), Image.Resampling.BICUBIC))
    spec = Preprocess(32, "uint8", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(
        np.rint(preprocess(image, spec) * 255), expected.transpose(2, 0, 1)
    )
