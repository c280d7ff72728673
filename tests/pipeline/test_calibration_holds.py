"""What a calibration does not hold for is refused, and early."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import photograph

from pipeline.conftest import Command
from spg_pipe.decision.calibration import Calibration


def deep(path: Path, peak: int) -> None:
    """A grey PNG of 16 bits that does not say its white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(peak + len(path.name)).integers(0, peak, (40, 48), np.uint16)
    values[0, 0] = peak
    Image.fromarray(values).save(path)


def test_images_that_are_brighter_than_white_of_the_calibration_are_refused(
    run: Command, detector: Path, tmp_path: Path
) -> None:
    for number in range(20):
        deep(tmp_path / "good" / f"{'x' * number}0.png", 4000)
    run("calibrate", detector, tmp_path / "good")
    made = Calibration.load(tmp_path / "detector-calibration.json")
    assert made.judging.white == 4095
    deep(tmp_path / "dark" / "0.png", 900)
    assert "decision" in run("predict", detector, tmp_path / "dark")
    deep(tmp_path / "bright" / "0.png", 9000)
    run("predict", detector, tmp_path / "bright", fails="16-bit images have values up to 9000")


def test_a_calibration_of_the_banks_own_images_gives_no_batch_and_no_drift(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good, bank = labelled / "nut" / "good", tmp_path / "bank"
    bank.mkdir()
    for number in range(10):
        shutil.copy(good / f"{number:02d}.png", bank)
    given = ("--normals", bank, "--bank", "alone")
    run("calibrate", detector, *given, "--false-alarms", "0.1")
    made = Calibration.load(tmp_path / "bank-calibration.json")
    assert made.from_bank
    assert not made.watchable
    said = run("predict", detector, good, *given, says=True)
    assert "of the bank's own images: nothing is promised" in said
    for option in (("--fdr", "0.1"), ("--drift", "20")):
        run("predict", detector, good, *given, *option, fails="It promises nothing, so --fdr and")
    run("calibrate", detector, good, *given, "--false-alarms", "0.1")
    assert not Calibration.load(tmp_path / "bank-calibration.json").from_bank
    run("predict", detector, good, *given, "--fdr", "0.1")


def test_a_threshold_by_hand_is_a_number(run: Command, detector: Path, labelled: Path) -> None:
    run("predict", detector, labelled, "--threshold", "nan", fails="A threshold is nan. Expected")
    hand = ("--method", "manual", "--threshold", "inf")
    run("calibrate", detector, labelled, *hand, fails="A threshold is inf")


def test_a_camera_whose_name_is_no_text_is_refused_before_images_are_judged(
    run: Command, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(tmp_path / "all" / "a\tb" / "0.png", (40, 48))
    photograph(tmp_path / "all" / "c" / "0.png", (40, 48))
    monkeypatch.delattr("spg_pipe.pipeline.calibrate.judge_items")
    fails = r"folder 'a\tb' has a control character"
    run("calibrate", detector, tmp_path / "all", "--by-folder", fails=fails)
