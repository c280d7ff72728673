"""A detector in a notebook beside a bank: what the commands check, and what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TinyBackbone, additive_plan, write_folder

from spg_pipe import Detector
from spg_pipe.cli.main import app
from spg_pipe.detector import model
from spg_pipe.detector.make import make_detector
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import exit_code

Command = Callable[..., str]


@pytest.fixture
def made(tiny_store, tiny_sae, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a detector, images to judge and normal ones."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    monkeypatch.chdir(tmp_path)
    make_detector(tiny_store, additive_plan(tiny_sae))[0].save(tmp_path / "detector")
    write_folder(tmp_path / "parts", ("bolt",), good=2, masked=2, missing=0, seed=3)
    write_folder(tmp_path / "normals", ("bolt",), good=4, masked=0, missing=0, seed=7)
    shutil.rmtree(tmp_path / "parts" / "bolt" / "ground_truth")
    return tmp_path


@pytest.fixture
def run(made: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> str:
        code = exit_code(lambda: app([*map(str, words), "--device", "cpu", "--json"]))
        out, err = capsys.readouterr()
        assert code == 0, err
        return str(out)

    return run


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_after_the_readmes_three_commands_python_says_what_predict_says(
    run: Command, made: Path
) -> None:
    run("fit", "detector", "--normals", "normals", "--out", "bank")
    run("calibrate", "detector", "--normals", "bank", "--false-alarms", "0.3")
    lines = lines_of(run("predict", "detector", "parts", "--normals", "bank"))
    detector = Detector.load("detector", bank="bank")
    for line in lines:
        found = detector.predict(made / "parts" / line["path"]).result
        told = json.loads(found.model_dump_json(by_alias=True)) | {"path": line["path"]}
        assert told == line | {"files": told["files"], "group": ""}
        assert (told["normals"], told["decision"] in ("normal", "anomalous")) == (4, True)
    plain = Detector.load("detector")  # the calibration beside the bank is not its own
    assert plain.predict(made / "parts" / lines[0]["path"]).result.decision is None


def test_a_bank_alone_judges_in_python_too(run: Command, made: Path) -> None:
    run("fit", "detector", "--normals", "normals", "--out", "bank")
    lines = lines_of(run("predict", "detector", "parts", "--normals", "bank", "--bank", "alone"))
    detector = Detector.load("detector", bank="bank", alone=True)
    for line in lines:
        found = detector.predict(made / "parts" / line["path"]).result
        assert (found.score, found.deviation) == (line["score"], line["deviation"])
    with pytest.raises(SpgError, match="A bank alone is to judge, and none is given"):
        Detector.load("detector", alone=True)


def test_a_bank_whose_images_were_shown_otherwise_is_refused(run: Command, made: Path) -> None:
    run("fit", "detector", "--normals", "normals", "--out", "bank", "--letterbox")
    with pytest.raises(SpgError, match=r"were shown otherwise \(letterbox"):
        Detector.load("detector", bank="bank")
    detector = Detector.load("detector", bank="bank", fit="letterbox")
    image = np.full((40, 48), 0.5)
    assert detector.predict(image).result.normals == 4
    with pytest.raises(SpgError, match="The bank was made without ignored pixels"):
        detector.predict(image, ignored=np.zeros((40, 48)))
    with pytest.raises(SpgError, match="normals is no bank"):
        Detector.load("detector", bank="normals")


def test_a_bank_beside_a_published_rule_judges_only_when_it_is_said_to_be_alone(
    run: Command, made: Path, tiny_detector: model.Detector
) -> None:
    tiny_detector.save(made / "published")
    run("fit", "published", "--normals", "normals", "--out", "bank")
    with pytest.raises(SpgError, match="or the bank alone"):
        Detector.load("published", bank="bank")
    found = Detector.load("published", bank="bank", alone=True).predict(np.full((40, 48), 0.5))
    assert found.result.normals == 4
