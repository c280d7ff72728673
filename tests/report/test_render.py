"""Outlines of masks, and sizes of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from spg_pipe.report import render


def grey(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_outline_leaves_the_region_itself_alone() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[3:6, 3:6] = 1
    image = grey(9, 9)
    drawn = render.outline(image, mask)
    np.testing.assert_array_equal(drawn[mask > 0], image[mask > 0])
    assert (drawn[2, 2:7] == 255).all()
    assert (drawn[1, 1:8] == 0).all()
    assert (drawn[0] == 128).all()
    assert (image == 128).all()


def test_an_empty_mask_has_no_outline() -> None:
    image = grey(5, 5)
    np.testing.assert_array_equal(render.outline(image, np.zeros((5, 5), np.uint8)), image)


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (64, 32)), ((10, 20), (10, 20)), ((4000, 3), (64, 1))]
)
def test_fit_keeps_the_aspect_ratio_and_never_enlarges(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert render.fit(grey(*size), 64).shape == (*expected, 3)
    assert render.fitted_size(size, 64) == expected
