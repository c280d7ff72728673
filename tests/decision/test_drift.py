"""A warning of drift is as rare as asked while nothing changes, and comes soon when it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from spg_pipe.decision import drift as drift_module
from spg_pipe.decision.drift import Drift, after_bets, smoothed_rank
from spg_pipe.decision.thresholds import conformal_threshold

ORACLE = json.loads((Path(__file__).parents[1] / "oracle" / "nonconform.json").read_text())


def test_evidence_is_that_of_nonconform() -> None:
    sums, found = np.zeros(6), []
    for rank in ORACLE["ranks"]:
        sums = after_bets(sums, rank)
        found.append(sums.mean())
    np.testing.assert_allclose(found, ORACLE["evidence"], rtol=1e-12)


def calibrated(generator: np.random.Generator, images: int) -> tuple[np.ndarray, float]:
    scores = np.sort(generator.normal(size=images))
    return scores, float(scores[scores <= conformal_threshold(scores, 0.05)][-1])


def images_until_warning(
    generator: np.random.Generator, normal: int, every: int, shift: float, before: int = 0
) -> int:
    """How many images after `before` unchanged ones; at most 20,000."""
    drift = Drift(*calibrated(generator, normal), every)
    for _ in range(before):
        drift.warns(generator.normal())
    for number in range(1, 20_001):
        if drift.warns(generator.normal() + shift):
            return number
    return 20_000


@pytest.mark.parametrize("normal", [19, 100])
def test_a_false_warning_comes_once_in_so_many_images_or_less_often(normal: int) -> None:
    generator = np.random.default_rng(2)
    times = [images_until_warning(generator, normal, 50, 0) for _ in range(200)]
    assert np.mean(times) > 50 + 2 * np.std(times) / np.sqrt(len(times))
    assert max(times) < 20_000


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shift_of_a_deviation_is_found_in_tens_of_images(shift: float) -> None:
    generator = np.random.default_rng(3)
    times = [images_until_warning(generator, 200, 1000, shift, before=50) for _ in range(40)]
    assert np.median(times) < 100


def test_ranks_are_uniform_and_independent_also_with_equal_scores() -> None:
    generator = np.random.default_rng(4)
    ranks = []
    for _ in range(3000):
        scores = sorted(generator.integers(0, 3, size=3).astype(float).tolist())
        each = [(float(generator.integers(0, 3)), 1 - generator.random()) for _ in range(4)]
        ranks.append([smoothed_rank(scores, *one) for one in each])
        assert scores == sorted(scores)
    for column in np.transpose(ranks):
        assert kstest(column, "uniform").pvalue > 0.001
    correlation = np.corrcoef(np.transpose(ranks))[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 4 / np.sqrt(3000)


def test_images_that_are_called_anomalous_do_not_count() -> None:
    drift = Drift([0.0, 1.0, 2.0, 3.0], 2.0, 10)
    assert not any(drift.warns(score) for score in [2.0, 3.0, 100.0] * 100)
    assert drift.level == 0


def test_after_a_warning_the_evidence_begins_anew() -> None:
    scores = np.linspace(0, 1, 200)
    drift = Drift(scores, 2.0, 100)
    numbers = [number for number in range(200) if drift.warns(1.5 + number / 1000)]
    assert len(numbers) >= 2
    assert drift.level < 100


def test_after_so_many_images_all_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "ANEW_IMAGES", 50)
    among = list[int]()

    def counted(scores: list[float], score: float, chance: float) -> float:
        among.append(len(scores))
        return smoothed_rank(scores, score, chance)

    monkeypatch.setattr(drift_module, "smoothed_rank", counted)
    drift = Drift(np.linspace(0, 1, 20), 2.0, 10**9)
    levels = []
    for number in range(120):
        drift.warns(1.5 + number / 1000)
        levels.append(drift.level)
    assert among == [*range(20, 70), *range(20, 70), *range(20, 40)]
    assert levels[49] > 1000
    assert levels[50] == pytest.approx(levels[0], rel=0.5)


@pytest.mark.parametrize("normal", [19, 100])
def test_beginning_anew_makes_false_warnings_no_more_frequent(
    normal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_module, "ANEW_IMAGES", 100)
    generator, warnings = np.random.default_rng(5), []
    for _ in range(300):
        drift = Drift(*calibrated(generator, normal), 50)
        warnings.append(sum(drift.warns(generator.normal()) for _ in range(500)))
    assert 0 < np.mean(warnings) < 500 / 50 + 2 * np.std(warnings) / np.sqrt(300)


def test_the_same_scores_give_the_same_evidence() -> None:
    first, second = (Drift([0.0, 1.0], 2.0, 1000) for _ in range(2))
    for score in [0.5, 1.0, 1.0, 0.0] * 10:
        first.warns(score)
        second.warns(score)
    assert first.level == second.level > 0
