"""`explain` and `predict --explain`: what is written, for a person's own images and for a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TinyBackbone, additive_plan, files, photograph

from spg_pipe.cli.main import app
from spg_pipe.detector.make import make_detector
from spg_pipe.errors import SpgError
from spg_pipe.explain.lines import line_of
from spg_pipe.pipeline.console import Console, exit_code
from spg_pipe.pipeline.predict import Ask, predict_images
from spg_pipe.predict.normals import NormalFolder
from spg_pipe.recipe.params import BankParams

RESULT = {".run.json.lock", "predictions.jsonl", "run.json", "scores.csv"}
TRICKY = "<script>alert(1)</script>.png"
Lines = list[dict[str, Any]]


@pytest.fixture
def ask(tmp_path, tiny_store, tiny_sae, monkeypatch) -> Ask:
    """Three images, one of a tricky name, and a detector of contrast guides."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    detector = tmp_path / "detector"
    make_detector(tiny_store, additive_plan(tiny_sae))[0].save(detector)
    for name in ("a.png", f"more/{TRICKY}", "c.png"):
        photograph(tmp_path / "photos" / name, (60, 90))
    return Ask(detector, [str(tmp_path / "photos")], tmp_path / "out", device="cpu", explained=True)


def explain(ask: Ask, **changes: Any) -> Lines:
    """What is told of each image, with no heat maps."""
    told: list[str] = []
    predict_images(
        replace(ask, overlays=0, **changes), Console(0), lambda line: told.append(line.why)
    )
    return [json.loads(line) for line in told]


def lines_in(out: Path) -> Lines:
    text = (out / "explanations.jsonl").read_text(encoding="ascii")
    return [json.loads(line) for line in text.splitlines()]


def require_adds_up(line: dict[str, Any]) -> None:
    total = line["bias"] + sum(line["components"].values())
    assert total == pytest.approx(line["score"], abs=1e-5)
    for name, offset in line["offsets"].items():
        listed = [row["contribution"] for row in line["atoms"] if row["component"] == name]
        rest = line.get("rest", {}).get(name, 0)
        assert offset + sum(listed) + rest == pytest.approx(line["components"][name], abs=1e-5)


def test_a_line_and_a_picture_an_image(ask: Ask) -> None:
    told = explain(ask)
    lines = lines_in(ask.out)
    assert [line["path"] for line in lines] == ["a.png", "c.png", f"more/{TRICKY}"]
    assert told == lines
    for line in lines:
        require_adds_up(line)
        assert line["peak"]["grid"] == [4, 4]
    pictures = {f"explained/{line['path']}.jpg" for line in lines}
    assert set(files(ask.out)) == {"explanations.jsonl", *RESULT, *pictures}
    with Image.open(ask.out / "explained" / "a.png.jpg") as picture:
        assert picture.width > 600


def test_only_the_strongest_atoms_and_the_highest_scores(ask: Ask) -> None:
    explain(ask, atoms=2, pictures=1)
    lines = lines_in(ask.out)
    for line in lines:
        assert len(line["atoms"]) == 2
        require_adds_up(line)
    highest = max(lines, key=lambda line: line["score"])["path"]
    drawn = [name for name in files(ask.out) if name.startswith("explained/")]
    assert drawn == [f"explained/{highest}.jpg"]


def test_a_second_run_replaces_its_own_files_alone(ask: Ask) -> None:
    explain(ask)
    (ask.out / "notes.txt").write_text("mine")
    first = files(ask.out)
    explain(ask)
    assert files(ask.out) == first
    explain(ask, pictures=0)
    assert set(files(ask.out)) == {"explanations.jsonl", "notes.txt", *RESULT}


def test_what_is_no_explanation_is_not_replaced(ask: Ask) -> None:
    ask.out.mkdir()
    (ask.out / "explanations.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(SpgError, match="is not part of a result"):
        explain(ask)
    assert set(files(ask.out)) == {"explanations.jsonl"}


def test_pictures_of_an_earlier_run_are_no_images(ask: Ask) -> None:
    inside = replace(ask, out=Path(ask.sources[0]) / "why")
    for _ in range(2):
        assert len(explain(inside)) == 3
    assert len(explain(ask, pictures=0)) == 3


def test_predict_explains_the_scores_that_it_writes(ask: Ask) -> None:
    predict_images(ask, Console(0))
    with (ask.out / "predictions.jsonl").open() as stream:
        scores = {row["path"]: row["score"] for row in map(json.loads, stream)}
    lines = lines_in(ask.out)
    assert {line["path"]: line["score"] for line in lines} == pytest.approx(scores, abs=1e-7)
    for line in lines:
        require_adds_up(line)
    assert (ask.out / "explained" / "more" / f"{TRICKY}.jpg").is_file()
    assert (ask.out / "overlays" / "more" / f"{TRICKY}.jpg").is_file()
    # Without: none of an earlier run is left beside its scores.
    predict_images(replace(ask, explained=False), Console(0))
    assert not (ask.out / "explanations.jsonl").exists()
    assert not (ask.out / "explained").exists()


def test_a_bank_is_explained_beside_guides_and_refused_alone(ask: Ask, tmp_path: Path) -> None:
    for number in range(3):
        photograph(tmp_path / "good" / f"{'n' * number}x.png", (60, 90))
    normals = NormalFolder(tmp_path / "good", BankParams())
    explain(replace(ask, normals=normals), pictures=0)
    for line in lines_in(ask.out):
        assert "bank" in line["components"]
        assert "few-shot: 3 normal images" in line["supervision"]
        assert line["among_normals"] is (line["path"] in ("a.png", "c.png"))  # the same pixels
        require_adds_up(line)
    alone = NormalFolder(tmp_path / "good", BankParams(), alone=True)
    with pytest.raises(SpgError, match="alone uses no guides"):
        explain(replace(ask, normals=alone, out=tmp_path / "alone"))


def test_a_line_holds_nothing_that_is_no_number(ask: Ask) -> None:
    from spg_pipe.detector.model import Detector
    from spg_pipe.predict.predictor import Predictor

    predictor = Predictor(Detector.load(ask.detector), TinyBackbone())
    pixels = np.full((20, 30, 3), 128, np.uint8)
    _, explanation = predictor.explain([pixels])
    line = json.loads(line_of(explanation, 0, "grey.png"))
    require_adds_up(line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "x", "--bank", "alone"], "--bank goes with your own images"),
        (["--split", "x", "--out", "y"], "--out goes with your own images"),
        (["DETECTOR", "FOLDER", "--seed", "7"], "--seed goes with a dataset"),
        (["DETECTOR", "FOLDER", "--aux", "a"], "--aux goes with a dataset"),
        (["DETECTOR", "FOLDER", "--split", "a"], "--split goes with a dataset"),
        (["DETECTOR", "--split", "a", "--seed", "7"], "DETECTOR is one: leave out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["spg-pipe", "explain", *arguments])
    assert exit_code(app) == 1
    assert message in capsys.readouterr().err
