"""`explain` and `predict --explain`: what is written, for a person's own images and for a store."""

from __future__ import annotations

import errno
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
from spg_pipe.pipeline.explain import explain_images
from spg_pipe.pipeline.predict import Ask, predict_folder
from spg_pipe.predict.normals import NormalFolder
from spg_pipe.recipe.params import BankParams

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
    return Ask(detector, tmp_path / "photos", tmp_path / "out", device="cpu")


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
    told: list[str] = []
    explain_images(ask, Console(0), atoms=None, pictures=None, listener=told.append)
    lines = lines_in(ask.out)
    assert [line["path"] for line in lines] == ["a.png", "c.png", f"more/{TRICKY}"]
    assert [json.loads(line) for line in told] == lines
    for line in lines:
        require_adds_up(line)
        assert line["peak"]["grid"] == [4, 4]
    pictures = {f"explained/{line['path']}.jpg" for line in lines}
    assert set(files(ask.out)) == {"explanations.jsonl", *pictures}
    with Image.open(ask.out / "explained" / "a.png.jpg") as picture:
        assert picture.width > 600


def test_only_the_strongest_atoms_and_the_highest_scores(ask: Ask) -> None:
    explain_images(ask, Console(0), atoms=2, pictures=1, listener=lambda _: None)
    lines = lines_in(ask.out)
    for line in lines:
        assert len(line["atoms"]) == 2
        require_adds_up(line)
    highest = max(lines, key=lambda line: line["score"])["path"]
    drawn = [name for name in files(ask.out) if name.startswith("explained/")]
    assert drawn == [f"explained/{highest}.jpg"]


def test_a_second_run_replaces_its_own_files_alone(ask: Ask) -> None:
    explain_images(ask, Console(0), atoms=None, pictures=None, listener=lambda _: None)
    (ask.out / "notes.txt").write_text("mine")
    first = files(ask.out)
    explain_images(ask, Console(0), atoms=None, pictures=None, listener=lambda _: None)
    assert files(ask.out) == first
    explain_images(ask, Console(0), atoms=None, pictures=0, listener=lambda _: None)
    assert set(files(ask.out)) == {"explanations.jsonl", "notes.txt"}


def test_what_is_no_explanation_is_not_replaced(ask: Ask) -> None:
    ask.out.mkdir()
    (ask.out / "explanations.jsonl").write_text('{"mine": 1}\n')
    with pytest.raises(SpgError, match="not a result of explain"):
        explain_images(ask, Console(0), atoms=None, pictures=None, listener=lambda _: None)
    assert set(files(ask.out)) == {"explanations.jsonl"}


def test_pictures_of_an_earlier_run_are_no_images(ask: Ask) -> None:
    inside = Ask(ask.detector, ask.source, ask.source / "why", device="cpu")
    for _ in range(2):
        explain_images(inside, Console(0), atoms=None, pictures=None, listener=lambda _: None)
        assert len(lines_in(inside.out)) == 3
    elsewhere = Ask(ask.detector, ask.source, ask.out, device="cpu")
    explain_images(elsewhere, Console(0), atoms=None, pictures=0, listener=lambda _: None)
    assert len(lines_in(ask.out)) == 3


def test_predict_explains_the_scores_that_it_writes(ask: Ask) -> None:
    outcome: Any = predict_folder(ask, Console(0), explained=True).content
    scores = {row["path"]: row["score"] for row in outcome["predictions"]}
    lines = lines_in(ask.out)
    assert {line["path"]: line["score"] for line in lines} == pytest.approx(scores, abs=1e-7)
    for line in lines:
        require_adds_up(line)
    assert (ask.out / "explained" / "more" / f"{TRICKY}.jpg").is_file()
    predict_folder(ask, Console(0))  # without: none of an earlier run is left beside its scores
    assert not (ask.out / "explanations.jsonl").exists()
    assert not list((ask.out / "explained").rglob("*.jpg"))


def test_a_bank_is_explained_beside_guides_and_refused_alone(ask: Ask, tmp_path: Path) -> None:
    for number in range(3):
        photograph(tmp_path / "good" / f"{'n' * number}x.png", (60, 90))
    normals = NormalFolder(tmp_path / "good", BankParams())
    few = Ask(ask.detector, ask.source, ask.out, device="cpu", normals=normals)
    explain_images(few, Console(0), atoms=None, pictures=0, listener=lambda _: None)
    for line in lines_in(ask.out):
        assert "bank" in line["components"]
        assert "few-shot: 3 normal images" in line["supervision"]
        assert line["among_normals"] is (line["path"] in ("a.png", "c.png"))  # the same pixels
        require_adds_up(line)
    alone = NormalFolder(tmp_path / "good", BankParams(), alone=True)
    with pytest.raises(SpgError, match="alone uses no guides"):
        predict_folder(
            Ask(ask.detector, ask.source, tmp_path / "alone", device="cpu", normals=alone),
            Console(0),
            explained=True,
        )


def test_a_line_holds_nothing_that_is_no_number(ask: Ask) -> None:
    from spg_pipe.detector.model import Detector
    from spg_pipe.predict.predictor import Predictor

    predictor = Predictor(Detector.load(ask.detector), TinyBackbone())
    pixels = np.full((20, 30, 3), 128, np.uint8)
    _, explanation = predictor.explain([pixels])
    line = json.loads(line_of(explanation, 0, "grey.png"))
    require_adds_up(line)


def test_a_picture_that_cannot_be_written_costs_no_line(ask: Ask, monkeypatch) -> None:
    def full(path: Path, *_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("spg_pipe.explain.writer.write_bytes", full)
    with pytest.raises(SpgError, match=r"has all lines, but 3 pictures .*No space left"):
        explain_images(ask, Console(0), atoms=None, pictures=None, listener=lambda _: None)
    assert len(lines_in(ask.out)) == 3
    beside = replace(ask, out=ask.out / "predictions")
    with pytest.raises(SpgError, match=r"scores of all 3 images, but 3 pictures .*No space left"):
        predict_folder(beside, Console(0), explained=True)
    assert len(lines_in(beside.out)) == 3
    assert (beside.out / "scores.csv").is_file()


def test_lines_of_a_person_are_not_replaced_by_predict(ask: Ask) -> None:
    predict_folder(ask, Console(0), explained=True)
    mine = ask.out / "explanations.jsonl"
    mine.write_text('{"mine": 1}\n')
    with pytest.raises(SpgError, match="not a result of explain"):
        predict_folder(ask, Console(0))
    assert mine.read_text() == '{"mine": 1}\n'


def test_predict_replaces_what_explain_wrote(ask: Ask) -> None:
    explain_images(ask, Console(0), atoms=None, pictures=None, listener=lambda _: None)
    predict_folder(ask, Console(0))
    assert (ask.out / "scores.csv").is_file()
    assert not (ask.out / "explanations.jsonl").exists()


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
