"""Limits of a group of images, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from spg_pipe.decision.limits import Asked, GroupScores, limits_of
from spg_pipe.errors import SpgError
from spg_pipe.metrics import HistogramAccumulator

NORMAL = GroupScores(
    normal=np.arange(99.0)[::-1].tolist(),
    tops=[*np.linspace(0, 0.5, 99, dtype=np.float32)],
)
LABELLED = replace(NORMAL, anomalous=[90.5, 120.0, 130.0, 140.0], pixels=HistogramAccumulator())
LABELLED.pixels.update(
    np.array([[0.1, 0.2, 0.3, 0.3, 0.8]], np.float32), np.array([[0, 0, 0, 1, 1]], np.uint8)
)


def test_conformal_limits_are_of_scores_and_of_the_highest_values_of_maps() -> None:
    limits = limits_of(NORMAL, Asked(false_alarms=0.1))
    assert limits.image
    assert limits.pixel
    assert 89 < limits.image.value < 89.5
    assert NORMAL.tops[89] < limits.pixel.value < NORMAL.tops[90]
    assert limits.attained == 89
    assert limits.scores == tuple(range(99))
    assert limits.image.says == (
        "A new normal image scores above it with a probability of at most 0.1, over the draw of it "
        "and of 99 normal images, if they are exchangeable."
    )
    assert "has a pixel above it" in limits.pixel.says


def test_a_tolerance_bound_is_no_lower_and_says_its_confidence() -> None:
    conformal, bound = (limits_of(NORMAL, Asked(each)) for each in ("conformal", "tolerance"))
    assert conformal.image
    assert bound.image
    assert bound.image.value > conformal.image.value
    assert "At most 0.05 of all normal images score above it, with a probability of 0.95" in (
        bound.image.says
    )


def test_f1_max_and_a_recall_floor_say_what_they_reach_on_their_images() -> None:
    best = limits_of(LABELLED, Asked("f1-max"))
    floor = limits_of(LABELLED, Asked("recall", recall=0.9))
    assert best.image
    assert floor.image
    assert [best.decide(score) for score in (98, 120)] == ["normal", "anomalous"]
    assert [floor.decide(score) for score in (90, 90.5)] == ["normal", "anomalous"]
    assert "precision 1, recall 0.75, false alarms 0." in best.image.says
    assert "99 normal and 4 anomalous images: precision 0.333, recall 1" in floor.image.says
    assert best.anomalous == 4
    assert best.p_value(120) == 0.01
    assert floor.pixel
    assert np.float32(0.3) > floor.pixel.value > np.float32(0.2)


def test_without_masks_there_is_no_limit_of_pixels() -> None:
    without = replace(LABELLED, pixels=HistogramAccumulator())
    assert limits_of(without, Asked("f1-max")).pixel is None


def test_f1_max_is_scikit_learns_highest_f1() -> None:
    rng = np.random.default_rng(5)
    normal, anomalous = rng.normal(size=60), rng.normal(1, 1, size=25)
    group = GroupScores(normal=normal.tolist(), anomalous=anomalous.tolist())
    limits = limits_of(group, Asked("f1-max"))
    scores, truth = np.r_[normal, anomalous], np.repeat([0, 1], [60, 25])
    assert limits.image
    reached = f1_score(truth, scores > limits.image.value)
    assert reached == max(f1_score(truth, scores >= score) for score in scores)


def test_a_pixel_threshold_by_hand_counts_as_predict_does() -> None:
    group = GroupScores(normal=[0.0], tops=[np.float32(0.6)])
    limits = limits_of(group, Asked("manual", pixel_threshold=0.6))
    assert limits.pixel
    assert limits.pixel.says.startswith("Set by hand; 1 of 1 normal image have a pixel above")


def test_a_method_for_labelled_images_needs_both_kinds() -> None:
    with pytest.raises(SpgError, match=r"99 normal images and 0 with a defect.*recall needs both"):
        limits_of(NORMAL, Asked("recall"))
