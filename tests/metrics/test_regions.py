"""Regions of a mask."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spg_pipe.metrics import Regions, label_regions, vanished_regions

masks = hnp.arrays(np.uint8, (8, 9), elements=st.integers(0, 1))


def test_diagonal_neighbours_are_one_region() -> None:
    labels, n = label_regions(np.eye(5, dtype=np.uint8))
    assert n == 1
    np.testing.assert_array_equal(labels, np.eye(5))


@settings(deadline=None)
@given(masks)
def test_runs_are_the_masks_pixels_with_the_areas_of_their_regions(mask: np.ndarray) -> None:
    regions = Regions.of(mask)
    labels, n = label_regions(mask)
    inside = labels[labels > 0]
    assert (regions.shape, regions.count) == (mask.shape, n)
    np.testing.assert_array_equal(regions.places(), np.flatnonzero(mask))
    np.testing.assert_array_equal(regions.pixel_areas(), np.bincount(inside)[inside])


def test_a_run_ends_with_its_row() -> None:
    regions = Regions.of(np.ones((2, 3), np.uint8))
    assert regions.starts.tolist() == [0, 3]
    assert (regions.count, regions.areas.tolist()) == (1, [6, 6])


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
