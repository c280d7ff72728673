"""What a person is told: what was left out, and an honest rate where nobody watches a terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SAE, TinyBackbone, write_folder

from spg_pipe.pipeline import console, features, training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params


@pytest.fixture
def run(tmp_path: Path) -> RecipeRun:
    """Two categories; one mask is empty, one defect of each has none."""
    root = write_folder(tmp_path / "parts")
    blank = root / "bolt/ground_truth/dent/00_mask.png"
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(blank)
    content = {
        "name": "mini",
        "artifacts": tmp_path / "artifacts",
        "datasets": [{"name": "parts", "layout": "folder", "root": root}],
        "auxiliaries": ["parts"],
        "directions": [],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 32},
        "sae": SAE.model_dump() | {"epochs": 25},
        "guides": {"kind": "trained", "epochs": 1},
    }
    return RecipeRun(parse_params(content, "the test's recipe"), Console(), device="cpu", workers=1)


def test_extract_and_train_guides_say_what_they_left_out(run, capsys):
    (dataset,) = run.params.datasets
    store = features.extract(run, dataset, backbone=TinyBackbone())
    said = capsys.readouterr().err
    assert "note: 1 given mask without a single anomalous pixel" in said
    assert "bolt/dent/00.png" in said
    sae = training.train_sae(run, "parts", 111, store=store)
    capsys.readouterr()
    training.train_guides(run, "parts", 111, store=store, sae=sae)
    said = capsys.readouterr().err
    assert "note: 2 images of 16 left out of guide training: a defect without a mask" in said
    assert "note: 1 given mask without a single anomalous pixel" in said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; the test moves it."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_resumed_run_counts_only_its_own_work(clock, capsys):
    with Console().progress("train-sae", "tokens") as update:
        clock[0] += 20
        update(9_000, 10_000, 0.5)
        clock[0] += 20
        update(9_200, 10_000, 0.25)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train-sae: 9,000/10,000 tokens, loss 0.5"
    assert second == "train-sae: 9,200/10,000 tokens, 10.0/s, 80 s left, loss 0.25"


def test_every_layer_counts_anew(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("train-sae") as update:
        update(20, 100, label="6")
        clock[0] += 40
        update(100, 100, label="6")
        clock[0] += 50
        update(1, 100, label="8")
        clock[0] += 10
        update(41, 100, label="8")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(", ")[:2] for line in lines] == [
        ["100/100 images", "2.0/s"],
        ["1/100 images"],
        ["41/100 images", "4.0/s"],
    ]


@pytest.mark.parametrize("console", [Console(0), Console(1, json=True), Console(2)])
def test_a_download_is_announced_to_whoever_wants_silence_too(console, capsys) -> None:
    console.announce("Downloading x\x1b[2J")
    assert capsys.readouterr() == ("", "Downloading x\\x1b[2J\n")
