"""`compare`: every method on every direction, and what each was allowed to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import write_mvtec
from test_parts import RECIPE

from spg_pipe import pipeline
from spg_pipe.console import Console
from spg_pipe.errors import SpgError
from spg_pipe.params import parse_params
from spg_pipe.session import Session

ZERO_SHOT = {
    "spg-plus": "labelled auxiliary set",
    "SPG as published": "labelled auxiliary set",
    "free dense guides, trained": "labelled auxiliary set",
    "logistic regression": "labelled auxiliary set",
    "intra-image dissimilarity": "nothing",
}


def session_of(**changes: Any) -> Session:
    return Session(parse_params(RECIPE | {"seeds": [1, 2]} | changes, "test"), Console(0), "cpu")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pipeline.Comparison]:
    folder = tmp_path_factory.mktemp("compare")
    write_mvtec(folder / "left")
    write_mvtec(folder / "right", ("bottle",), seed=1, good=3, per_defect=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        session = session_of()
        for name in ("left", "right"):
            pipeline.extract(session, session.params.dataset(name))
        return folder, pipeline.compare(session, normals=2)


def rows_of(comparison: pipeline.Comparison) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in comparison.rows}


def test_every_method_says_what_it_saw(compared: tuple[Path, pipeline.Comparison]) -> None:
    sees = {name: row["sees"] for name, row in rows_of(compared[1]).items()}
    assert {name: sees[name] for name in ZERO_SHOT} == ZERO_SHOT
    others = {name: what for name, what in sees.items() if name not in ZERO_SHOT}
    assert {name: what.partition(":")[0] for name, what in others.items()} == {
        "k-NN bank": "few-shot",
        "Mahalanobis": "few-shot",
        "spg-plus + k-NN bank": "labelled auxiliary set; few-shot",
        "mutual scoring": "transductive",
    }
    assert "2 normal images" in sees["k-NN bank"]
    for name, what in sees.items():
        assert name in compared[1].table
        assert what.split()[0] in compared[1].table


def test_rows_are_means_over_seeds_inside_their_intervals(
    compared: tuple[Path, pipeline.Comparison],
) -> None:
    for name, row in rows_of(compared[1]).items():
        assert row["seconds"] > 0
        assert (row["auxiliary"], row["dataset"], row["protocol"]) == ("left", "right", "exact")
        seeded = row["seeds"] == "1;2"
        assert np.isnan(row["pixel_auroc_std"]) != seeded, name
        low, high = (row[f"pixel_auroc_{edge}"] for edge in ("low", "high"))
        assert 0 <= low < high <= 1
        if not seeded:  # an interval is of the first seed, which is then the row itself
            assert low - 1e-3 <= row["pixel_auroc"] <= high + 1e-3, name


def test_the_recipes_row_is_what_its_own_stages_give(
    compared: tuple[Path, pipeline.Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, comparison = compared
    monkeypatch.chdir(folder)
    session = session_of()
    pipeline.score(session, "right")
    tables = [pipeline.read_metrics(path)[-1] for path in pipeline.evaluate(session, "right")]
    for metric in ("image_auroc", "pixel_auroc", "pixel_ap"):
        expected = np.mean([table[metric] for table in tables])
        assert rows_of(comparison)["spg-plus"][metric] == pytest.approx(expected, abs=1e-9)


def test_without_a_train_split_few_shot_methods_are_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("left", "right")):
        write_mvtec(tmp_path / name, ("bottle",), seed=number)
        for train in (tmp_path / name).glob("*/train"):
            shutil.rmtree(train)
    params = parse_params(RECIPE | {"seeds": [1]}, "test")
    session = Session(params, Console(1), "cpu")
    for name in ("left", "right"):
        pipeline.extract(session, session.params.dataset(name))
    found = rows_of(pipeline.compare(session))
    assert set(found) == {*ZERO_SHOT, "mutual scoring"}
    assert "No few-shot methods on right" in capsys.readouterr().err


def test_few_shot_methods_take_each_product_by_itself_and_transductive_ones_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("left", "right")):
        write_mvtec(tmp_path / name, seed=number)
    session = Session(parse_params(RECIPE | {"seeds": [1]}, "test"), Console(1), "cpu")
    for name in ("left", "right"):
        pipeline.extract(session, session.params.dataset(name))
    rows = rows_of(pipeline.compare(session, normals=2))
    few_shot = {"k-NN bank", "Mahalanobis", "spg-plus + k-NN bank"}
    assert set(rows) == {*ZERO_SHOT, *few_shot}
    for name in few_shot:
        assert "few-shot: 2 normal images of each category" in rows[name]["sees"]
    assert "one product at a time" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": []}, "no directions"),
        ({"guides": {"kind": "trained"}}, "found trained and additive"),
        ({"score": {"rule": "published"}}, "found contrast and published"),
        ({"metrics": {"resolution": "original"}}, "metrics.resolution=model"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpgError, match=message):
        pipeline.compare(session_of(**changes))
