"""Protocol `spg`, held to the reference's definition written out as a loop over thresholds."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from parity.metrics_case import filled

from benchmarks.reference import evaluate as reference
from spg_pipe.errors import SpgError
from spg_pipe.metrics import accumulate
from spg_pipe.metrics.published import one_score_below, spg_pro


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(np.float32, (2, 6, 6), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.uint8, (2, 6, 6), elements=st.integers(0, 1)),
)
def test_pro_is_the_references(maps: np.ndarray, masks: np.ndarray) -> None:
    assume((masks == 0).any())
    # The subnormal steps of a nearly constant map are no test of PRO.
    assume(maps.max() - maps.min() > 1e-30)
    try:
        fast, n_thresholds = reference.pro(maps, masks, fast=True)
        slow, _ = reference.pro(maps, masks, fast=False)
    except ValueError:
        with pytest.raises(SpgError):
            spg_pro(filled(maps, masks))
        return
    got = spg_pro(filled(maps, masks))
    assert got.fast == pytest.approx(fast, abs=1e-9)
    assert got.slow == pytest.approx(slow, abs=1e-9, nan_ok=True)
    assert got.n_thresholds == n_thresholds


def test_maps_without_a_curve_are_errors_that_say_so() -> None:
    mask, everywhere = np.zeros((5, 5), dtype=np.uint8), np.ones((5, 5), dtype=np.uint8)
    mask[1, 1] = 1
    constant, binary = np.full((5, 5), 0.25, np.float32), np.ones((5, 5), np.float32)
    binary[3] = 0.0
    for images, message in (
        ([(constant, mask), (constant, mask)], r"all 50 scores are 0\.25"),
        ([], "all 0 scores"),
        ([(binary, mask)], "0 of 200 thresholds"),
        ([(binary, everywhere)], "no normal pixel"),
    ):
        with pytest.raises(SpgError, match=message):
            accumulate(lambda images=images: images, protocol="spg")


def test_without_regions_fast_is_zero_and_slow_is_nan() -> None:
    maps = np.random.default_rng(0).random((2, 16, 16), dtype=np.float32)
    got = accumulate(lambda: zip(maps, np.zeros_like(maps), strict=True), protocol="spg")
    assert got.pro["fast"] == 0
    assert np.isnan(got.pro["slow"])
    assert len(got.curves["pro"].x) == 0  # as in exact: a curve of NaN would spoil the mean curve
    assert np.isnan([got.auroc, got.ap, got.f1_max, got.f1_threshold]).all()


def test_a_perfect_binary_map_scores_zero_fast_and_nan_slow() -> None:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[2:5, 2:5] = 1
    got = accumulate(lambda: [(mask.astype(np.float32), mask)], protocol="spg")
    assert (got.auroc, got.pro["fast"]) == (1.0, 0)
    assert np.isnan(got.pro["slow"])


def test_f1_threshold_is_one_distinct_score_lower_and_selects_the_same_pixels() -> None:
    rng = np.random.default_rng(1)
    mask = (rng.random((32, 32)) < 0.1).astype(np.uint8)
    scores = np.round(rng.random((32, 32)) * 0.6 + 0.4 * mask, 1).astype(np.float32)
    exact = accumulate(lambda: [(scores, mask)], "sort")
    spg = accumulate(lambda: [(scores, mask)], protocol="spg")
    assert spg.f1_max == exact.f1_max
    assert spg.f1_threshold < exact.f1_threshold
    assert spg.f1_threshold in scores
    above, from_it = scores > np.float32(spg.f1_threshold), scores >= exact.f1_threshold
    np.testing.assert_array_equal(above, from_it)


def test_below_the_lowest_score_is_the_next_float() -> None:
    scores = np.array([0.5, 0.75], dtype=np.float32)
    assert one_score_below(0.75, scores) == 0.5
    assert one_score_below(0.5, scores) == np.nextafter(np.float32(0.5), np.float32(0))
    assert np.isnan(one_score_below(float("nan"), scores))


def test_a_monotone_change_moves_this_pro_and_not_the_exact_one() -> None:
    rng = np.random.default_rng(2)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:40, 20:40] = 1
    scores = (rng.random((64, 64)) * 0.7 + 0.25 * mask).astype(np.float32)
    sharper = scores**4
    before = accumulate(lambda: [(scores, mask)], protocol="spg").pro["fast"]
    after = accumulate(lambda: [(sharper, mask)], protocol="spg").pro["fast"]
    assert abs(before - after) > 1e-4
    exact = [accumulate(lambda m=m: [(m, mask)], "sort").aupro[0.3] for m in (scores, sharper)]
    assert exact[0] == pytest.approx(exact[1], abs=1e-12)
