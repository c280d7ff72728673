"""Thresholds keep the promises of docs/thresholds.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom
from sklearn.metrics import f1_score

from spg_pipe.decision.thresholds import (
    ROOM,
    benjamini_hochberg,
    conformal_threshold,
    f1_threshold,
    groups_of,
    p_values,
    recall_threshold,
    tolerance_threshold,
)
from spg_pipe.errors import SpgError
from spg_pipe.metrics.operating import above

ORACLE = json.loads((Path(__file__).parents[1] / "oracle" / "nonconform.json").read_text())
"""Numbers of nonconform 2.0.0, which needs Python 3.12: a calibration with ties."""
scores_of = st.lists(st.integers(-20, 20).map(float), min_size=19, max_size=60).map(np.array)


def just_above(scores: np.ndarray, score: float) -> float:
    """With no neighbour nearer than twice the room."""
    return score + ROOM * float(np.std(scores))


def test_conformal_is_just_above_the_score_of_its_rank() -> None:
    for number, rate, rank in [(19, 0.05, 19), (100, 0.05, 96), (99, 0.29, 71)]:
        scores = np.arange(1.0, number + 1)[::-1]
        assert conformal_threshold(scores, rate) == just_above(scores, rank)  # ⌈(n + 1)(1 − α)⌉


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=19, max_size=40).map(np.array),
    st.sampled_from([np.float32, np.float64]),
)
def test_a_threshold_is_between_two_scores_so_that_rounding_moves_no_image(
    scores: np.ndarray, kind: type
) -> None:
    scores = np.sort(scores.astype(kind))
    score, room = scores[len(scores) // 2], ROOM * float(scores.astype(float).std())
    threshold = conformal_threshold(scores, 1 - len(scores) // 2 / (len(scores) + 1) - 1e-6)
    higher = scores[scores > score].astype(float)
    assert (above(scores, threshold) == (scores > score)).all()
    least = min([room, *(higher[:1] - float(score)) / 2])
    assert threshold - float(score) == pytest.approx(least, rel=1e-6, abs=1e-9)


def test_equal_scores_leave_no_room_and_none_is_above() -> None:
    assert conformal_threshold(np.full(19, 0.25), 0.05) == 0.25


@given(scores_of, st.sampled_from([0.05, 0.1, 0.29, 0.5]))
def test_conformal_bounds_false_alarms_of_whichever_image_is_the_new_one(
    scores: np.ndarray, rate: float
) -> None:
    """The guarantee itself: of n + 1 images each is as likely the new one, also with ties."""
    alarms = [
        score > conformal_threshold(np.delete(scores, number), rate)
        for number, score in enumerate(scores)
        if len(scores) > 1 / rate
    ]
    assert sum(alarms) <= rate * len(scores) + 1e-9


@given(scores_of, st.floats(-25, 25), st.sampled_from([0.05, 0.1, 0.29]))
def test_a_score_is_above_the_threshold_if_its_p_value_is_at_most_the_rate_but_for_the_room(
    scores: np.ndarray, new: float, rate: float
) -> None:
    p = p_values(np.sort(scores), np.array([new]))[0]
    assert p == (1 + (scores >= new).sum()) / (len(scores) + 1)
    threshold, room = conformal_threshold(scores, rate), ROOM * float(scores.std())
    if new > threshold or new <= threshold - room:
        assert (new > threshold) == (p <= rate + 1e-12)


def test_p_values_and_discoveries_are_those_of_nonconform() -> None:
    p = p_values(np.sort(ORACLE["normal"]), np.array(ORACLE["scores"]))
    np.testing.assert_array_equal(p, ORACLE["p_values"])
    for rate, found in ORACLE["discoveries"].items():
        assert benjamini_hochberg(p, float(rate)).tolist() == found


@pytest.mark.parametrize(("images", "rate"), [(18, "0.05263"), (0, "")])
def test_too_few_images_are_an_error_that_says_how_many_and_what_they_allow(
    images: int, rate: str
) -> None:
    with pytest.raises(SpgError, match="at least 19 are needed") as caught:
        conformal_threshold(np.zeros(images), 0.05)
    assert rate in str(caught.value)
    conformal_threshold(np.zeros(19), 0.05)


def test_a_tolerance_bound_needs_59_images_for_5_and_95_percent() -> None:
    scores = np.arange(59.0)
    assert tolerance_threshold(scores, 0.05, 0.95) == just_above(scores, 58)
    with pytest.raises(SpgError, match=r"at least 59 are needed.*0.05034 or more"):
        tolerance_threshold(np.arange(58.0), 0.05, 0.95)
    with pytest.raises(SpgError, match="at least 59"):
        tolerance_threshold(np.empty(0), 0.05, 0.95)


@pytest.mark.parametrize("images", [59, 93, 400])
def test_a_tolerance_bound_is_the_least_rank_with_its_confidence(images: int) -> None:
    """The rate of the k-th of n is above α if fewer than k of n uniform numbers are below 1 − α."""
    scores = np.arange(images)
    threshold = tolerance_threshold(scores, 0.05, 0.95)
    rank = int((scores < threshold).sum())
    assert binom.cdf(rank - 1, images, 0.95) >= 0.95 > binom.cdf(rank - 2, images, 0.95)
    assert beta.cdf(0.05, images - rank + 1, rank) == pytest.approx(
        binom.cdf(rank - 1, images, 0.95)
    )


def test_benjamini_hochberg_takes_the_last_p_value_below_its_line() -> None:
    p = np.array([0.3, 0.01, 0.04, 0.02, 0.9])
    assert benjamini_hochberg(p, 0.1).tolist() == [False, True, True, True, False]
    assert benjamini_hochberg(p, 0.04).tolist() == [False] * 5
    assert benjamini_hochberg(np.array([0.05, 0.05, 0.9]), 0.08).tolist() == [True, True, False]
    assert benjamini_hochberg(np.empty(0), 0.1).tolist() == []


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_a_batch_has_no_more_false_discoveries_than_asked(rate: float) -> None:
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        normal = np.sort(generator.normal(size=200))
        new = np.append(generator.normal(size=40), generator.normal(3, size=10))
        found = benjamini_hochberg(p_values(normal, new), rate)
        shares.append(found[:40].sum() / max(found.sum(), 1))
    error = np.std(shares) / 20
    assert 0.8 * rate * 0.8 < np.mean(shares) < rate * 0.8 + 2 * error  # 40 of 50 are normal


@given(st.lists(st.integers(-5, 5), min_size=1), st.lists(st.integers(-5, 5), min_size=1))
def test_f1_max_is_reached_by_the_scores_above_its_threshold(
    normal: list[int], anomalous: list[int]
) -> None:
    scores, truth = np.array([*normal, *anomalous], float), [0] * len(normal) + [1] * len(anomalous)
    threshold = f1_threshold(groups_of(np.array(normal, float), np.array(anomalous, float)))
    every = [f1_score(truth, scores > each - 0.5) for each in np.unique(scores)]
    assert f1_score(truth, scores > threshold) == pytest.approx(max(every))


def test_a_recall_floor_is_the_highest_threshold_that_reaches_it() -> None:
    normal, anomalous = np.array([0.0, 2.5]), np.array([1.0, 2.0, 3.0, 4.0, 4.0])
    for recall, lowest in [(0.4, 4.0), (0.41, 3.0), (0.6, 3.0), (0.95, 1.0), (1.0, 1.0)]:
        threshold = recall_threshold(groups_of(normal, anomalous), recall)
        assert threshold == lowest - ROOM * np.std([*normal, *anomalous])
        assert (anomalous > threshold).mean() >= recall


def test_a_threshold_of_pixels_parts_float32() -> None:
    """A map is compared in float32, where the next smaller float64 would be the same number."""
    low, high = np.array([0.2], np.float32), np.array([0.7], np.float32)
    threshold = f1_threshold(groups_of(low, high), pixels=True)
    assert threshold == np.nextafter(high[0], np.float32(0))
    assert (high > threshold).all()
