"""Accumulators: order, merging, memory, and the histogram against the sort."""

from __future__ import annotations

import tracemalloc

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spg_pipe.errors import SpgError
from spg_pipe.metrics import (
    HistogramAccumulator,
    PixelMetrics,
    Regions,
    SortAccumulator,
    accumulate,
    chosen_accumulator,
)
from spg_pipe.metrics.accumulators import BINS
from spg_pipe.metrics.logit_keys import MAX_KEY, lowest_score, score_bins, score_keys
from spg_pipe.metrics.pixel import Counts
from spg_pipe.metrics.protocols import SORT_PIXELS

Images = list[tuple[np.ndarray, np.ndarray | Regions]]
KINDS = [SortAccumulator, HistogramAccumulator]


def made_up(seed: int, n: int = 6, size: int = 48, spread: float = 1.0) -> Images:
    """Maps whose logits are normal; anomalous squares a little higher."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(n):
        mask = np.zeros((size, size + i), dtype=np.uint8)
        for _ in range(i % 4):
            y, x = rng.integers(0, size - 8, 2)
            mask[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = 1
        logits = rng.normal(-2.0, spread, mask.shape) + 1.5 * spread * mask
        images.append(((1 / (1 + np.exp(-logits))).astype(np.float32), mask))
    return images


def values(metrics: PixelMetrics) -> dict[str, float]:
    areas = {f"aupro_{limit}": area for limit, area in metrics.aupro.items()}
    return {"auroc": metrics.auroc, "ap": metrics.ap, "f1_max": metrics.f1_max, **areas}


def filled(kind: type, images: Images) -> SortAccumulator | HistogramAccumulator:
    accumulator = kind()
    for anomaly_map, mask in images:
        accumulator.update(anomaly_map, mask)
    return accumulator


def assert_within_bounds(images: Images) -> PixelMetrics:
    histogram, exact = (
        filled(HistogramAccumulator, images).compute(),
        accumulate(lambda: images, "sort"),
    )
    for name, value in values(exact).items():
        if not np.isnan(value):
            bound = histogram.error_bounds[name]
            assert abs(values(histogram)[name] - value) <= bound + 1e-12, name
    return histogram


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(1e-6, 12.0))
def test_histogram_stays_within_its_own_bound(seed: int, spread: float) -> None:
    assert_within_bounds(made_up(seed, spread=spread))


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, (9, 9), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.uint8, (9, 9), elements=st.integers(0, 1)),
)
def test_histogram_stays_within_its_bound_on_any_map(scores: np.ndarray, mask: np.ndarray) -> None:
    assert_within_bounds([(scores, mask)])


def test_histogram_bound_holds_where_scores_differ_by_one_float() -> None:
    """Wide range, all the order inside one bin: the bound must not miss it."""
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:30, 10:30] = 1
    for better in (True, False):
        scores = np.full((40, 40), 0.4, dtype=np.float32)
        scores[mask == better] = np.nextafter(np.float32(0.4), np.float32(1))
        scores[0, 0], scores[0, 1] = 1e-11, 1.0
        assert assert_within_bounds([(scores, mask)]).error_bound > 0.3


def test_histogram_bound_is_small_for_ordinary_maps() -> None:
    histogram = assert_within_bounds(made_up(3, n=12, size=256))
    assert 0 < histogram.error_bound <= 1e-4
    assert not histogram.needs_fallback


def test_one_bin_a_float_is_exact() -> None:
    """Where every bin holds one float there is no doubt: constant maps, and those close to 1."""
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[3:20, 4:9] = 1
    constant = np.full((32, 32), 0.3, dtype=np.float32)
    near_one = (1 - np.random.default_rng(0).integers(0, 30, (32, 32)) * 2.0**-24).astype("f4")
    near_one[0, 0] = 1e-11
    for scores in (constant, near_one):
        histogram = assert_within_bounds([(scores, mask)])
        assert histogram.error_bound < 1e-8
        got, exact = values(histogram), values(accumulate(lambda s=scores: [(s, mask)], "sort"))
        assert got == pytest.approx(exact, abs=1e-8)


def test_a_poor_histogram_is_replaced_by_a_sort_in_a_second_pass() -> None:
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:3] = 1
    scores = np.full((16, 16), 0.2, dtype=np.float32)
    scores[0, 0], scores[0, 1:5] = 1.0, 0.0  # the widest range, hence the widest bins
    images = [(scores, mask)]
    passes = []

    def make_iter() -> Images:
        passes.append(1)
        return images

    assert filled(HistogramAccumulator, images).compute().needs_fallback
    got = accumulate(make_iter, "histogram")
    assert len(passes) == 2
    assert (got.accumulator, got.error_bound) == ("sort", 0.0)
    assert values(got) == values(accumulate(lambda: images, "sort"))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_order_merging_and_regions_labelled_before_change_nothing_to_the_last_bit(
    kind: type, data: st.DataObject
) -> None:
    images = made_up(11, n=7, size=20, spread=3.0)
    images.append((np.zeros((3, 3), dtype=np.float32), np.eye(3, dtype=np.uint8)))
    expected = filled(kind, images).compute()
    images[::2] = [(anomaly_map, Regions.of(mask)) for anomaly_map, mask in images[::2]]
    order = data.draw(st.permutations(range(len(images))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(images)), max_size=3)))
    parts = np.split(np.array(order), cuts)
    merged = kind()
    for part in parts:
        merged.merge(filled(kind, [images[i] for i in part]))
    got = merged.compute()
    assert values(got) == values(expected)
    for name in ("error_bounds", "counts", "f1_threshold"):
        assert getattr(got, name) == getattr(expected, name)


@pytest.mark.parametrize("kind", KINDS)
def test_computing_is_possible_at_any_time(kind: type) -> None:
    images = made_up(2)
    accumulator, other = filled(kind, images[:3]), filled(kind, images[3:])
    accumulator.compute()
    before = values(other.compute())
    accumulator.merge(other)
    assert values(accumulator.compute()) == values(filled(kind, images).compute())
    assert values(other.compute()) == before


def test_the_accumulator_keeps_no_reference_to_the_callers_map() -> None:
    images = made_up(4)
    buffer, accumulator = np.empty((48, 48), dtype=np.float32), SortAccumulator()
    square = [(scores[:, :48], mask[:, :48]) for scores, mask in images]
    for scores, mask in square:
        buffer[:] = scores
        accumulator.update(buffer, mask)
    assert values(accumulator.compute()) == values(filled(SortAccumulator, square).compute())


def test_histogram_memory_does_not_grow_with_images() -> None:
    images = made_up(8, n=4, size=128)
    accumulator = filled(HistogramAccumulator, images)
    tracemalloc.start()
    try:
        for _ in range(75):
            for anomaly_map, mask in images:
                accumulator.update(anomaly_map, mask)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50_000  # bytes; 300 maps of 128 x 128 in float32 are 20 MB
    assert peak < 10 * 8 * BINS
    assert accumulator.counts.images == 304


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_keys_keep_the_order_of_scores(scores: list[float]) -> None:
    ordered = np.sort(np.array(scores, dtype=np.float32) + np.float32(0))
    keys = score_keys(ordered).astype(np.int64)
    assert (np.diff(keys) >= 0).all()
    assert keys[0] >= 0
    assert keys[-1] <= MAX_KEY
    distinct = ordered >= 2.0**-40
    assert len(np.unique(keys[distinct])) == len(np.unique(ordered[distinct]))


@pytest.mark.parametrize("level", [0, 9, 13])
def test_bins_are_keys_in_coarser_steps(level: int) -> None:
    low = np.random.default_rng(level).random(9_000, np.float32) ** 9 / 2
    # A block below one half, one across it and one above; and the ends of the range.
    ends = np.array([0, -0.0, 2**-41, 2**-40, 0.5, np.nextafter(np.float32(1), 0), 1], np.float32)
    scores = np.concatenate([low, ends, 1 - low[1:]])
    bins = np.empty(len(scores), np.int64)
    score_bins(scores, level, 5, bins)
    np.testing.assert_array_equal(bins, (score_keys(scores).astype(np.int64) >> level) - 5)


def test_auto_sorts_what_is_small_and_counts_what_is_large() -> None:
    assert chosen_accumulator("auto", SORT_PIXELS) == "sort"
    assert chosen_accumulator("auto", SORT_PIXELS + 1) == "histogram"
    assert chosen_accumulator("sort", 10 * SORT_PIXELS) == "sort"
    assert chosen_accumulator("histogram", 1) == "histogram"


@settings(deadline=None)
@given(st.integers(0, MAX_KEY), st.integers(0, 13))
def test_a_bins_lowest_score_starts_the_bin(key: int, level: int) -> None:
    start = key >> level << level
    score = lowest_score(np.array([start]))
    assert score_keys(score)[0] >= start
    if score[0] > 0:
        assert score_keys(np.nextafter(score, np.float32(0)))[0] < max(start, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_map_is_refused_with_a_message(kind: type) -> None:
    mask = np.zeros((4, 4), dtype=np.uint8)
    with pytest.raises(SpgError, match=r"shape \(4, 5\) with a mask of shape \(4, 4\)"):
        kind().update(np.zeros((4, 5), dtype=np.float32), mask)
    broken = np.zeros((4, 4), dtype=np.float32)
    broken[2, 2] = np.nan
    with pytest.raises(SpgError, match="NaN or infinite"):
        kind().update(broken, mask)


def test_scores_beyond_probabilities_are_for_the_sort() -> None:
    scores = np.array([[-3.0, 2.0], [0.0, -0.0]], dtype=np.float32)
    mask = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    with pytest.raises(SpgError, match="accumulator: sort"):
        HistogramAccumulator().update(scores, mask)
    # 0.0 and -0.0 tie: pairs won 1 + 1 + 1 + 1/2 of 4.
    assert filled(SortAccumulator, [(scores, mask)]).compute().auroc == pytest.approx(0.875)
    negative = np.array([[-3.0, -2.0, -1.0, 5.0]], dtype=np.float32)
    anomalous = np.array([[1, 0, 1, 0]], dtype=np.uint8)
    assert accumulate(lambda: [(negative, anomalous)], "sort").auroc == pytest.approx(0.25)


def test_more_regions_than_integers_can_weigh_are_refused() -> None:
    accumulator = filled(HistogramAccumulator, made_up(1))
    accumulator.counts += Counts(regions=2**22)
    with pytest.raises(SpgError, match=r"4,194,\d+ anomalous regions .*accumulator: sort"):
        accumulator.compute()


def test_an_unknown_kind_is_refused_with_a_message() -> None:
    with pytest.raises(SpgError, match=r"metrics\.accumulator: heap"):
        accumulate(lambda: [], "heap")
    with pytest.raises(SpgError, match=r"metrics\.protocol: other"):
        accumulate(lambda: [], "sort", "other")
