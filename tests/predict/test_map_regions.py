"""Regions of an anomaly map: figures, exact run lengths, polygons, bounds."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from spg_pipe.metrics.operating import above
from spg_pipe.predict.regions import TOLERANCE, regions_of


def drawn(shape: tuple[int, int], *boxes: tuple[int, int, int, int, float]) -> np.ndarray:
    """A map with rectangles (top, left, bottom, right, value)."""
    found = np.zeros(shape, np.float32)
    for top, left, bottom, right, value in boxes:
        found[top:bottom, left:right] = value
    return found


def test_a_region_says_where_it_is_and_how_high() -> None:
    found = drawn((20, 30), (3, 5, 7, 15, 0.6), (12, 20, 16, 22, 0.9))
    found[4, 8] = 0.7
    low, high = sorted(regions_of(found, 0.5).regions, key=lambda region: region.peak)
    assert (low.number, high.number) == (2, 1)
    assert (low.bbox, low.area) == ((5, 3, 10, 4), 40)
    assert (low.peak_row, low.peak_column) == (4, 8)
    assert low.peak == float(np.float32(0.7))
    assert low.mean == pytest.approx((39 * 0.6 + 0.7) / 40, abs=1e-6)
    assert high.bbox == (20, 12, 2, 4)
    assert (high.peak, high.mean) == (float(np.float32(0.9)),) * 2


def test_a_pixel_at_the_threshold_is_normal() -> None:
    found = drawn((4, 4), (1, 1, 2, 2, 0.5))
    assert regions_of(found, 0.5).regions == ()
    assert len(regions_of(found, np.nextafter(0.5, 0)).regions) == 1


def test_pixels_that_touch_by_a_corner_are_of_one_region() -> None:
    found = np.eye(5, dtype=np.float32)
    (only,) = regions_of(found, 0.5).regions
    assert (only.bbox, only.area) == ((0, 0, 5, 5), 5)


def test_nothing_above_the_threshold_is_no_region() -> None:
    assert regions_of(np.zeros((5, 4), np.float32), 0.0) == ((), 0)


def test_a_map_wholly_above_is_one_region() -> None:
    (only,) = regions_of(np.ones((30, 40), np.float32), 0.5).regions
    assert (only.bbox, only.area, only.rle.counts) == ((0, 0, 40, 30), 1200, (0, 1200))
    assert len(only.polygon) == 4


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    st.integers(0, 2**32 - 1),
)
def test_regions_are_those_of_the_mask(mask: np.ndarray, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.6, 1, mask.shape).astype(np.float32)
    found = np.where(mask, noise, np.float32(0))
    regions, left_out = regions_of(found, 0.5, most=200)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert (len(regions), left_out) == (count, 0)
    assert [region.peak for region in regions] == sorted((r.peak for r in regions), reverse=True)
    for region in regions:
        own = labels == labels[region.peak_row, region.peak_column]
        assert (region.rle.mask() == own).all()
        assert region.area == own.sum()
        assert region.peak == found[own].max() == found[region.peak_row, region.peak_column]
        assert region.mean == pytest.approx(found[own].mean(dtype=np.float64))
        rows, columns = np.nonzero(own)
        left, top, width, height = region.bbox
        assert (left, top) == (columns.min(), rows.min())
        assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
        ends = np.array(region.polygon)
        off = np.ptp(ends, axis=0) - (width, height)
        assert (off <= 0).all()
        assert (off >= -2 * TOLERANCE).all()


def test_run_lengths_are_coco_s() -> None:
    found = drawn((3, 4), (0, 1, 3, 3, 1.0))  # whole columns: one run goes over their ends
    assert regions_of(found, 0.5).regions[0].rle.counts == (3, 6, 3)
    found = drawn((3, 4), (1, 3, 3, 4, 1.0))  # the last count is left out if it is 0
    assert regions_of(found, 0.5).regions[0].rle.counts == (10, 2)


def test_a_polygon_is_the_outer_border_within_a_pixel() -> None:
    rows, columns = np.mgrid[:120, :160]
    disc = np.hypot(rows - 60, (columns - 80) / 1.3) < 45
    ring = disc & (np.hypot(rows - 60, columns - 80) > 20)
    (region,) = regions_of(ring.astype(np.float32), 0.5).regions
    assert len(region.polygon) < 60
    scale = 8  # drawn finely: Pillow's polygons are half a pixel off
    picture = Image.new("1", (160 * scale, 120 * scale))
    corners = [(x * scale - 0.5, y * scale - 0.5) for x, y in region.polygon]
    ImageDraw.Draw(picture).polygon(corners, fill=1)
    filled = np.asarray(picture).reshape(120, scale, 160, scale).mean(axis=(1, 3)) > 0.5
    off = filled != disc
    border = ndimage.binary_dilation(disc, np.ones((3, 3))) & ~ndimage.binary_erosion(
        disc, np.ones((5, 5))
    )
    assert off.mean() < 0.01
    assert not (off & ~border).any()


def test_many_specks_are_counted_and_the_highest_listed() -> None:
    found = np.zeros((600, 600), np.float32)
    found[::6, ::6] = np.random.default_rng(0).uniform(0.6, 1, (100, 100))
    started = time.thread_time()
    regions, left_out = regions_of(found, 0.5)
    assert time.thread_time() - started < 5
    assert (len(regions), left_out) == (100, 9900)
    listed = np.sort([region.peak for region in regions])
    assert (listed == np.sort(found[found > 0])[-100:]).all()
    assert above(found, 0.5).sum() == 10_000
