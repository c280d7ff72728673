"""Which images are shown, in which order, and their outlines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from spg_pipe.decision.heat_maps import outline
from spg_pipe.detector.scores import Scores
from spg_pipe.report.examples import choose, qualities, weighted_precision
from spg_pipe.store.reader import FeatureStore


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=12).filter(
        lambda cells: any(share for _, share in cells)
    )
)
def test_weighted_precision_is_that_of_the_pixels(cells):
    """A cell of 3 pixels with n defects counts as 3 pixels of one score."""
    scores = np.array([score for score, _ in cells], np.float32)
    share = np.array([count for _, count in cells]) / 3
    pixels = np.repeat(scores, 3)
    labels = np.concatenate([[1] * count + [0] * (3 - count) for _, count in cells])
    expected = average_precision_score(labels, pixels)
    assert weighted_precision(scores, share) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(weighted_precision(scores, np.zeros(len(cells))))


def test_anomalous_images_with_a_mask_have_a_quality_between_0_and_1(world):
    scores = Scores.load(world.paths.scores("aux", "target", 111))
    store = FeatureStore(world.paths.store("target"))
    quality, anomalous = qualities(scores, store), scores.table["label"] == 1
    assert ((quality[anomalous] > 0) & (quality[anomalous] <= 1)).all()
    assert np.isnan(quality[~anomalous]).all()
    assert np.isnan(qualities(scores, None)).all()


def table(labels: list[int], scores: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "category": "screw",
            "path": [f"{i}.png" for i in range(len(labels))],
            "label": np.array(labels, np.uint8),
            "score": np.array(scores, np.float32),
        }
    )


NAN = np.nan


@pytest.mark.parametrize(
    ("labels", "scores", "quality", "expected"),
    [
        (
            [0, 0, *[1] * 7],
            [0.2, 0.3, *[0.5] * 7],
            [NAN, NAN, 0.1, 0.9, 0.5, 0.3, 0.8, 0.2, 0.7],
            {"best": [3, 6, 8], "worst": [2, 7, 5], "false-alarm": [1]},
        ),
        ([1, 1, 1], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], {"best": [0, 1], "worst": [2]}),
        (
            [1, 1, 0],
            [0.1, 0.2, 0.3],
            [NAN] * 3,
            {"highest": [1], "lowest": [0], "false-alarm": [2]},
        ),
        ([255] * 4, [0.1, 0.4, 0.3, 0.2], [NAN] * 4, {"unlabelled": [1, 2, 3]}),
    ],
    ids=["by map quality", "none is both", "without masks by score", "unlabelled by score"],
)
def test_which_images_are_shown(labels, scores, quality, expected):
    shown: dict[str, list[int]] = {}
    for example in choose(table(labels, scores), "screw", np.array(quality)):
        shown.setdefault(example.kind, []).append(example.image)
    assert shown == expected
    assert choose(table(labels, scores), "another", np.array(quality)) == []


def grey(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_outline_leaves_the_region_itself_alone():
    mask = np.zeros((9, 9), np.uint8)
    mask[3:6, 3:6] = 1
    image = grey(9, 9)
    drawn = outline(image, mask)
    np.testing.assert_array_equal(drawn[mask > 0], image[mask > 0])
    assert (drawn[2, 2:7] == 255).all()
    assert (drawn[1, 1:8] == 0).all()
    assert (drawn[0] == 128).all()
    assert (image == 128).all()
    np.testing.assert_array_equal(outline(image, np.zeros_like(mask)), image)
