"""What a run's scores can say, and that it is not claimed where they cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spg_pipe.predict.ranking import one_sided, ranking
from spg_pipe.predict.result import Result


def ranked(path: str, score: float, **known: Any) -> Result:
    about = {"parts": {}, "height": 1, "width": 1, "peak": 0.0, "peak_row": 0, "peak_column": 0}
    return Result(path=path, score=score, protocol="default", **about, **known)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.linspace(3, 9, 41), "41 of 41 scores are above 0"),
        (np.linspace(-9, -3, 10), "10 of 10 scores are not above 0"),
        ([1.0] * 19 + [-1.0], "19 of 20 scores are above 0"),
        ([0.0] * 12, "12 of 12 scores are not above 0"),
        ([1.0] * 18 + [-1.0] * 2, ""),
        ([1.0] * 9, ""),
        ([], ""),
    ],
)
def test_scores_nearly_all_on_one_side_of_zero_are_told(scores, said):
    assert one_sided(list(scores)).startswith(said)
    assert bool(one_sided(list(scores))) == bool(said)


def test_beside_a_score_stands_where_it_lies_among_the_goods():
    images = [
        ranked("b.png", 9.0, deviation=4.25, normals_above=0),
        ranked("a.png", 1.0, deviation=-0.5, normals_above=3),
    ]
    assert ranking(images, 2, 4, ranks=False) == [
        "9.0000  +4.2 deviations  0 of 4 goods above  b.png",
        "1.0000  -0.5 deviations  3 of 4 goods above  a.png",
    ]


def test_where_zero_says_nothing_the_rank_stands_first():
    highest = [ranked("9.png", 14.0), ranked("8.png", 13.0)]
    assert ranking(highest, 10, 0, ranks=True) == [
        "1 of 10  14.0000  9.png",
        "2 of 10  13.0000  8.png",
    ]
    assert ranking(highest, 10, 0, ranks=False)[0] == "14.0000  9.png"


def test_a_name_forges_no_line():
    assert ranking([ranked("a\n9.0  b", 1.0)], 1, 0, ranks=False) == ["1.0000  a\\n9.0  b"]
