"""Limits of a group of images, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spg_pipe.decision.limits import Asked, GroupScores, limits_of
from spg_pipe.decision.thresholds import groups_of
from spg_pipe.errors import SpgError

NORMAL = GroupScores(
    normal=np.arange(99.0)[::-1],
    tops=np.linspace(0, 0.5, 99, dtype=np.float32),
    anomalous=np.empty(0),
    pixels=None,
)
LABELLED = replace(
    NORMAL,
    anomalous=np.array([90.5, 120.0, 130.0, 140.0]),
    pixels=groups_of(np.array([0.1, 0.2, 0.3], np.float32), np.array([0.3, 0.8], np.float32)),
)


def test_conformal_limits_are_of_scores_and_of_the_highest_values_of_maps() -> None:
    limits = limits_of(NORMAL, Asked(false_alarms=0.1))
    assert limits.image
    assert limits.pixel
    assert limits.image.value == 89
    assert limits.pixel.value == np.sort(NORMAL.tops)[89]
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
    assert limits_of(replace(LABELLED, pixels=None), Asked("f1-max")).pixel is None


def test_a_method_for_labelled_images_needs_both_kinds() -> None:
    with pytest.raises(SpgError, match=r"99 normal images and 0 with a defect.*recall needs both"):
        limits_of(NORMAL, Asked("recall"))
