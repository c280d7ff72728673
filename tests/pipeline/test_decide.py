"""What `predict` decides by a calibration, or by hand."""

from __future__ import annotations

import csv
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import photograph

from pipeline.conftest import Command
from pipeline.test_calibrate import lines_of
from spg_pipe.decision.calibration import Calibration
from spg_pipe.predict.items import find_items


def test_by_hand_or_without_a_calibration(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good = labelled / "nut" / "good"
    run("calibrate", detector, good)
    (line, *_) = lines_of(run("predict", detector, good, "--no-calibration"))
    assert (line["decision"], line["threshold"], line["p_value"]) == (None, None, None)
    (line, *_) = lines_of(run("predict", detector, good, "--threshold", "-1e9"))
    assert (line["decision"], line["threshold"], line["pixel_threshold"]) == (
        "anomalous",
        -1e9,
        None,
    )
    path = tmp_path / "detector-calibration.json"
    both = ("--threshold", "0", "--calibration", path)
    run("predict", detector, good, *both, fails="exclude each other")
    both = ("--threshold", "0", "--no-calibration")
    run("predict", detector, good, *both, fails="decides nothing")
    path.unlink()
    run("predict", detector, good, "--fdr", "0.1", fails="needs the scores of normal images")
    hand = ("--method", "manual", "--threshold", "-1e9")
    said = run("calibrate", detector, good, *hand, says=True)
    assert "20 of 20 normal images score above it" in said


def test_a_batch_is_decided_in_the_table(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    run("calibrate", detector, labelled / "nut" / "good")
    far = tmp_path / "far"
    for number in range(20):
        photograph(far / f"{'x' * number}0.png", (40, 48))
    (far / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    lines = lines_of(run("predict", detector, far, "--out", out, "--fdr", "0.5"))
    with (out / "scores.csv").open() as stream:
        rows = {row["path"]: row["batch_decision"] for row in csv.DictReader(stream)}
    assert rows["broken.png"] == ""
    p = np.sort([line["p_value"] for line in lines if "p_value" in line])
    fitting = np.flatnonzero(p <= 0.5 * np.arange(1, len(p) + 1) / len(p))
    found = sum(value == "anomalous" for value in rows.values())
    assert found == (fitting[-1] + 1 if len(fitting) else 0)
    again = run("predict", detector, far, "--out", out, "--fdr", "0.5", says=True)
    assert f"As one batch: {found} anomalous" in again


def test_drift_is_told(run: Command, detector: Path, labelled: Path, tmp_path: Path) -> None:
    good = labelled / "nut" / "good"
    limits = ("--method", "manual", "--threshold", "1e9")
    run("calibrate", detector, good, *limits)
    other = tmp_path / "other"
    other.mkdir()
    for number in range(60):  # one kind of image, again and again: all of them are at one end
        Image.new("RGB", (48, 40), (number, 255, 0)).save(other / f"{number:02d}.png")
    said = run("predict", detector, other, "--drift", "20", says=True)
    assert "Warning: drift." in said
    assert "once in 20 such images" in said
    assert "Warning" not in run("predict", detector, other, "--drift", "0", says=True)


def test_a_calibration_has_a_last_day(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good = labelled / "nut" / "good"
    run("calibrate", detector, good, "--valid-days", "30")
    path = tmp_path / "detector-calibration.json"
    made = Calibration.load(path)
    assert made.valid_until
    assert (made.valid_until - made.made).days == 30
    late = made.model_copy(update={"valid_until": made.made.replace(year=2020)})
    late.sealed().save(path)
    run("predict", detector, good, fails="held until 2020")


def test_of_images_that_come_one_by_one_those_of_an_unknown_group_fail_alone(
    run: Command, detector: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("calibrate", detector, labelled, "--by-folder")
    names = ["line/bolt/a.png", "line/screw/b.png", "line/nut/c.png"]
    for name in names:
        photograph(Path(name))
    arriving = partial(find_items, stdin=BytesIO("\n".join(names).encode()))
    monkeypatch.setattr("spg_pipe.pipeline.predict.find_items", arriving)
    lines = lines_of(run("predict", detector, "-"))
    assert [line["group"] for line in lines] == ["bolt", "screw", "nut"]
    assert "no threshold for images of the folder screw" in lines[1]["error"]
    assert all(lines[number]["threshold"] is not None for number in (0, 2))
