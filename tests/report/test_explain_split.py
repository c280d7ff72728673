"""`explain --split`: why a store's images have their scores, for every seed, without a backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.explain import explain_split
from spg_pipe.pipeline.run import RecipeRun

from .conftest import World


def explained(world: World, **given: Any) -> list[Path]:
    options = {"detector": None, "store": None, "atoms": None, "pictures": 1} | given
    run = RecipeRun(world.params, Console(0), device="cpu")
    return explain_split(run, "target", listener=lambda _: None, **options)


@pytest.mark.parametrize("kind", ["world", "published"])
def test_the_lines_are_of_the_scores_on_disk(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    world: World = request.getfixturevalue(kind).copied(tmp_path)
    for seed, path in zip(world.params.seeds, explained(world), strict=True):
        scores = Scores.load(world.paths.scores("aux", "target", seed)).table
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["path"] for line in lines] == scores["path"].tolist()
        for line, score in zip(lines, scores["score"].tolist(), strict=True):
            assert line["score"] == pytest.approx(score, abs=1e-6)
            total = line["bias"] + sum(line["components"].values())
            assert total == pytest.approx(score, abs=1e-5)
        highest = max(lines, key=lambda line: line["score"])["path"]
        pictures = list(path.parent.rglob("*.jpg"))
        assert pictures == [path.parent / "explained" / f"{highest}.jpg"]


def test_without_the_photographs_there_are_lines_alone(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = world.copied(tmp_path)
    gone = tmp_path / "gone"
    datasets = [row.model_dump() | {"root": gone} for row in copy.params.datasets]
    moved = copy.changed(datasets=datasets, seeds=(111,))
    run = RecipeRun(moved.params, Console(1), device="cpu")
    none: dict[str, Any] = {"detector": None, "store": None, "atoms": 1, "pictures": None}
    (path,) = explain_split(run, "target", listener=lambda _: None, **none)
    assert not list(path.parent.rglob("*.jpg"))
    assert "photographs could not be read" in capsys.readouterr().err


def test_a_missing_store_is_named(world: World, tmp_path: Path) -> None:
    copy = world.copied(tmp_path)
    shutil.rmtree(copy.paths.store("target"))
    with pytest.raises(SpgError, match="spg-pipe extract --split target"):
        explained(copy)
