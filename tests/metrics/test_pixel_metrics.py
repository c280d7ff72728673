"""Protocol `exact`, held to scikit-learn and to an AUPRO written out threshold by threshold."""

from __future__ import annotations

import doctest
import subprocess
import sys

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

import spg_pipe.metrics
from spg_pipe.metrics import PixelMetrics, accumulate
from spg_pipe.metrics.curves import LIMITS

Images = list[tuple[np.ndarray, np.ndarray]]


@st.composite
def categories(draw: st.DrawFn) -> Images:
    """One to three images of different sizes; scores free or from a few levels (ties)."""
    level = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    scores = draw(st.sampled_from([level, st.floats(0, 1, width=32)]))
    images = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.tuples(st.integers(2, 7), st.integers(2, 7)))
        anomaly_map = draw(hnp.arrays(np.float32, shape, elements=scores))
        mask = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)))
        images.append((anomaly_map, mask))
    return images


def flat(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """(P,) scores and (P,) truth of all pixels."""
    scores, masks = (
        np.concatenate([part.ravel() for part in parts]) for parts in zip(*images, strict=True)
    )
    return scores, masks.astype(int)


def aupro_written_out(images: Images, limit: float) -> float:
    """MVTec's AUPRO with a loop over every threshold and every region, diagonals joined."""
    scores, truth = flat(images)
    regions = []
    for anomaly_map, mask in images:
        labels, count = label(mask, np.ones((3, 3)))
        regions += [anomaly_map[labels == number] for number in range(1, count + 1)]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        false = ((scores >= threshold) & (truth == 0)).sum() / (truth == 0).sum()
        points.append((false, np.mean([(region >= threshold).mean() for region in regions])))
    x, y = np.array(points).T
    end = int(np.searchsorted(x, limit))
    at_limit = np.interp(limit, x[end - 1 : end + 1], y[end - 1 : end + 1])
    return np.trapezoid([*y[:end], at_limit], [*x[:end], limit]) / limit


@settings(deadline=None)
@given(categories())
def test_metrics_are_those_of_scikit_learn_and_of_mvtec(images: Images) -> None:
    scores, truth = flat(images)
    got, histogram = (accumulate(lambda: images, kind) for kind in ("sort", "histogram"))
    if len(np.unique(truth)) == 1:
        return
    assert got.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert got.ap == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    assert got.f1_max == pytest.approx(f1.max(), abs=1e-12)
    best = np.flatnonzero(f1[:-1] > f1.max() - 1e-12)[0]  # the lowest of equally good ones
    assert got.f1_threshold == thresholds[best]
    for metrics in (got, histogram):
        selected = scores >= np.float32(metrics.f1_threshold)
        assert f1_score(truth, selected) == pytest.approx(metrics.f1_max, abs=1e-12)
    for limit in LIMITS:
        assert got.aupro[limit] == pytest.approx(aupro_written_out(images, limit), abs=1e-12)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("kind", ["sort", "histogram"])
def test_one_class_is_nan_not_zero_and_not_a_crash(kind: str, level: int) -> None:
    got = accumulate(lambda: [(np.eye(3, dtype=np.float32), np.full((3, 3), level))], kind)
    values = [got.auroc, got.ap, got.f1_max, got.f1_threshold, *got.aupro.values()]
    assert np.isnan(values).all()
    assert got.error_bound == 0


@pytest.mark.parametrize("kind", ["sort", "histogram"])
def test_a_constant_detector_scores_the_prevalence(kind: str) -> None:
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[:4, :10] = 1
    got = accumulate(lambda: [(np.full((20, 20), 0.3, dtype=np.float32), mask)], kind)
    assert got.ap == pytest.approx(0.1, abs=1e-12)
    assert got.auroc == pytest.approx(0.5, abs=1e-12)
    assert got.aupro[0.3] == pytest.approx(0.15, abs=1e-12)  # the diagonal's area up to 0.3


@pytest.mark.parametrize("kind", ["sort", "histogram"])
def test_a_perfect_binary_map_is_perfect(kind: str) -> None:
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[3:5, 3:5] = mask[10:18, 2] = 1
    got = accumulate(lambda: [(mask.astype(np.float32), mask)], kind)
    assert (got.auroc, got.ap, got.f1_max, got.f1_threshold) == (1.0, 1.0, 1.0, 1.0)
    assert list(got.aupro.values()) == [1.0, 1.0, 1.0]
    assert got.accumulator == kind


def test_each_region_weighs_the_same_whatever_its_size() -> None:
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[0:6, 0:6] = mask[9, 9] = 1
    small_only = np.zeros((10, 10), dtype=np.float32)
    small_only[9, 9] = 1.0
    got = accumulate(lambda: [(small_only, mask)], "sort")
    # PRO is 1/2 at FPR 0, then rises straight to 1 at FPR 1.
    assert got.aupro[1.0] == pytest.approx(0.75)
    assert got.counts.regions == 2


def test_counts_say_what_went_in() -> None:
    mask = np.eye(4, dtype=np.uint8) * 255  # diagonal neighbours are one region
    images = [(np.zeros((4, 4), dtype=np.float32), mask), (np.ones((2, 3)), np.zeros((2, 3)))]
    counts = accumulate(lambda: images, "sort").counts
    assert (counts.images, counts.pixels, counts.anomalous_pixels, counts.regions) == (2, 22, 4, 1)


@pytest.mark.parametrize("kind", ["sort", "histogram"])
@pytest.mark.parametrize("protocol", ["exact", "spg"])
def test_curves_are_short_and_rise_to_their_ends(kind: str, protocol: str) -> None:
    rng = np.random.default_rng(5)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[10:30, 10:30] = 1
    scores = np.clip(rng.normal(0.4, 0.1, mask.shape) + 0.1 * mask, 0, 1).astype(np.float32)
    got: PixelMetrics = accumulate(lambda: [(scores, mask)], kind, protocol)
    assert set(got.curves) == {"roc", "pr", "pro"}
    for name, curve in got.curves.items():
        assert 2 <= len(curve.x) == len(curve.y) <= 500
        assert (np.diff(curve.x) >= 0).all()
        assert min(curve.x.min(), curve.y.min()) >= 0
        assert max(curve.x.max(), curve.y.max()) <= 1
        if name == "roc":
            assert np.trapezoid(curve.y, curve.x) == pytest.approx(got.auroc, abs=1e-3)


def test_metrics_work_alone() -> None:
    code = "import sys, spg_pipe.metrics; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(spg_pipe.metrics)
    assert result.attempted > 0
    assert result.failed == 0
