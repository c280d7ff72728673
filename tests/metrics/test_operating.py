"""Precision, recall and false-positive rate at a given threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score

from spg_pipe.metrics.operating import AtThreshold, above


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1), st.integers(0, 4))
def test_figures_are_scikit_learns_whatever_the_pieces(
    pairs: list[tuple[int, bool]], threshold: int
) -> None:
    scores, truth = (np.array(each) for each in zip(*pairs, strict=True))
    at = AtThreshold(threshold)
    for piece in (slice(0, 3), slice(3, None)):
        at.add(scores[piece].astype(float), np.flatnonzero(truth[piece]))
    found, above = at.figures("image"), scores > threshold
    expected = {
        "image_precision": precision_score(truth, above, zero_division=np.nan),
        "image_recall": recall_score(truth, above, zero_division=np.nan),
        "image_fpr": above[~truth].mean() if (~truth).any() else math.nan,
    }
    assert found == pytest.approx(expected, nan_ok=True)


@given(st.floats(0, 1, width=32), st.floats(-1e-9, 1e-9))
def test_a_map_in_float32_is_compared_as_its_numbers_are(value: float, beside: float) -> None:
    threshold = value + beside
    values = np.full((2, 2), value, np.float32)
    expected = value > threshold
    np.testing.assert_array_equal(above(values, threshold), np.full((2, 2), expected))
    at = AtThreshold(threshold)
    at.add(values, np.array([0]))
    assert at.figures("pixel")["pixel_recall"] == expected


def test_a_pixel_of_0_6_in_float32_is_above_0_6() -> None:
    assert above(np.array([0.6], np.float32), 0.6).all()  # 0.60000002
    assert not above(np.array([0.6]), 0.6).any()


def test_nothing_is_known_without_a_threshold() -> None:
    at = AtThreshold(None)
    at.add(np.ones(3), np.array([0]))
    assert all(map(math.isnan, at.figures("image").values()))
