"""Regions of a mask."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spg_pipe.metrics import label_regions, regions_per_image, vanished_regions
from spg_pipe.metrics.aupro import region_areas

masks = hnp.arrays(np.uint8, (8, 9), elements=st.integers(0, 1))


def test_diagonal_neighbours_are_one_region() -> None:
    labels, n = label_regions(np.eye(5, dtype=np.uint8))
    assert n == 1
    np.testing.assert_array_equal(labels, np.eye(5))


@settings(deadline=None)
@given(masks)
def test_areas_of_a_region_weigh_one(mask: np.ndarray) -> None:
    areas, n = region_areas(mask)
    assert len(areas) == mask.sum()
    assert (1 / areas).sum() == pytest.approx(n)
    assert regions_per_image([mask]) == [n]


@settings(deadline=None)
@given(masks, st.integers(1, 3))
def test_enlarging_makes_no_region_vanish(mask: np.ndarray, factor: int) -> None:
    assert vanished_regions(mask, mask.repeat(factor, axis=0).repeat(factor, axis=1)) == 0


@settings(deadline=None)
@given(masks)
def test_an_empty_resized_mask_lost_all(mask: np.ndarray) -> None:
    assert vanished_regions(mask, np.zeros((3, 3), dtype=np.uint8)) == label_regions(mask)[1]


def test_only_what_left_no_pixel_is_counted() -> None:
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[0:8, 0:8] = 1  # stays
    mask[20, 20] = mask[30, 5] = 1  # two specks, gone at a quarter of the size
    small = (mask.reshape(10, 4, 10, 4).mean(axis=(1, 3)) > 0.5).astype(np.uint8)
    assert vanished_regions(mask, small) == 2


def test_merged_regions_have_not_vanished() -> None:
    mask = np.zeros((4, 12), dtype=np.uint8)
    mask[:, 0:5] = mask[:, 6:12] = 1
    assert vanished_regions(mask, np.ones((1, 3), dtype=np.uint8)) == 0
