"""Precision, recall and false-positive rate at a given threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score

from spg_pipe.metrics.operating import AtThreshold


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


def test_a_map_is_compared_in_its_own_type() -> None:
    at = AtThreshold(0.1)
    at.add(np.full((2, 2), 0.1, np.float32), np.array([0]))
    assert at.figures("pixel") == pytest.approx(
        {"pixel_precision": math.nan, "pixel_recall": 0, "pixel_fpr": 0}, nan_ok=True
    )


def test_nothing_is_known_without_a_threshold() -> None:
    at = AtThreshold(None)
    at.add(np.ones(3), np.array([0]))
    assert all(map(math.isnan, at.figures("image").values()))
