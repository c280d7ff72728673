"""`calibrate`: thresholds from known images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import files

from pipeline.conftest import Command
from spg_pipe.decision.calibration import Calibration
from spg_pipe.errors import SpgError
from spg_pipe.predict.items import Item


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_normal_images_give_thresholds_beside_the_detector_and_predict_decides_by_them(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    before = files(detector)
    good = [labelled / "bolt" / "good", labelled / "nut" / "good"]
    made = json.loads(run("calibrate", detector, *good, "--false-alarms", "0.1"))
    path = tmp_path / "detector-calibration.json"
    assert made["calibration"] == str(path)
    assert files(detector) == before
    calibration = Calibration.load(path)
    limits = calibration.limits("anything")
    assert len(limits.scores) == 40
    assert limits.image
    assert limits.pixel
    assert limits.scores[36] < limits.image.value < limits.scores[37]  # ⌈41 · 0.9⌉ = 37
    out = tmp_path / "out"
    lines = lines_of(run("predict", detector, *good, "--out", out))
    scores = sorted(line["score"] for line in lines)
    assert tuple(scores) == limits.scores  # the very path of predict
    for line in lines:
        assert line["threshold"] == limits.image.value
        assert line["pixel_threshold"] == limits.pixel.value
        above = line["score"] > limits.image.value
        assert line["decision"] == ("anomalous" if above else "normal")
        assert line["p_value"] == (1 + sum(s >= line["score"] for s in scores)) / 41
    assert sum(line["decision"] == "anomalous" for line in lines) == 3
    said = run("predict", detector, *good, "--out", out, says=True)
    assert f"Decided by {path} (conformal, false alarms 0.1" in said
    assert "3 anomalous, 37 normal" in said


def test_the_threshold_of_pixels_is_the_rank_of_the_highest_values_of_maps(
    run: Command, detector: Path, labelled: Path
) -> None:
    good = labelled / "nut" / "good"
    run("calibrate", detector, good)
    (limits,) = Calibration.load(detector.with_name("detector-calibration.json")).groups.values()
    peaks = [line["peak"] for line in lines_of(run("predict", detector, good))]
    assert limits.pixel
    assert 0 < limits.pixel.value - max(peaks) < np.std(peaks)  # ⌈21 · 0.95⌉ = 20, of 20


@pytest.mark.parametrize("method", ["f1-max", "recall"])
def test_labelled_images_give_thresholds_of_images_and_of_pixels_under_masks(
    run: Command, detector: Path, labelled: Path, tmp_path: Path, method: str
) -> None:
    run("calibrate", detector, labelled, "--method", method, "--out", tmp_path / "c.json")
    limits = Calibration.load(tmp_path / "c.json").limits("")
    assert (len(limits.scores), limits.anomalous) == (40, 8)
    assert limits.pixel
    pixels = 46 * 40 * 48  # of 40 good images and of six defects with a mask
    normal, anomalous = (
        int(word.replace(",", ""))
        for word in limits.pixel.says.split("; ")[0].split(": ")[0].replace("and ", "").split()
        if word.replace(",", "").isdigit()
    )
    assert normal + anomalous == pixels
    lines = lines_of(run("predict", detector, labelled, "--calibration", tmp_path / "c.json"))
    found = [each["decision"] == "anomalous" for each in lines if "dent" in each["path"]]
    if method == "recall":
        assert sum(found) >= 0.95 * len(found) > 0


def test_each_first_folder_gets_thresholds_of_its_own(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    run("calibrate", detector, labelled, "--by-folder")
    calibration = Calibration.load(tmp_path / "detector-calibration.json")
    assert list(calibration.groups) == ["bolt", "nut"]
    assert "8 images with a defect" in calibration.notes[0]
    lines = lines_of(run("predict", detector, labelled))
    for line in lines:
        assert line["threshold"] == calibration.limits(line["group"]).image.value  # type: ignore[union-attr]
    shutil.move(labelled / "nut", labelled / "screw")
    run("predict", detector, labelled, fails="no threshold for images of the folder screw")


def test_groups_with_too_few_images_are_named(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    (labelled / "nut" / "good" / "00.png").unlink()
    (labelled / "nut" / "good" / "01.png").unlink()
    said = run("calibrate", detector, labelled, "--by-folder", fails="nut: 18 normal images cannot")
    assert "bolt: " not in said
    assert not (tmp_path / "detector-calibration.json").exists()
    run("calibrate", detector, labelled / "nut", "--by-folder", fails="good/ says what its images")


def test_copies_and_unreadable_images_are_left_out_and_named(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good = labelled / "nut" / "good"
    shutil.copy(good / "03.png", good / "copy.png")
    whole = (good / "04.png").read_bytes()
    (good / "cut.png").write_bytes(whole[: len(whole) // 2])
    run("calibrate", detector, good)
    calibration = Calibration.load(tmp_path / "detector-calibration.json")
    assert len(calibration.limits("").scores) == 20
    assert any("cannot be judged" in note and "cut.png" in note for note in calibration.notes)
    assert any("the content of another" in n and "copy.png" in n for n in calibration.notes)


def test_an_image_that_is_good_and_a_defect_at_once_is_an_error(
    run: Command, detector: Path, labelled: Path
) -> None:
    shutil.copy(labelled / "nut" / "good" / "03.png", labelled / "nut" / "dent" / "x.png")
    run("calibrate", detector, labelled, "--method", "f1-max", fails="among the defects")


def test_images_of_the_bank_are_left_out_and_the_bank_must_be_the_same(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good, bank = labelled / "nut" / "good", tmp_path / "bank"
    bank.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        shutil.copy(good / name, bank)
    given = ("--normals", bank, "--bank", "alone")
    run("calibrate", detector, good, *given, "--false-alarms", "0.1")
    assert not (tmp_path / "detector-calibration.json").exists()  # that is of the detector alone
    beside = tmp_path / "bank-calibration.json"
    calibration = Calibration.load(beside)
    assert len(calibration.limits("").scores) == 17
    assert "3 images among the normal images of the bank" in calibration.notes[0]
    run("predict", detector, good, *given)
    shutil.copy(good / "03.png", bank)
    run("predict", detector, good, *given, fails="the bank of --normals was")
    named = ("--calibration", beside)
    said = run("predict", detector, good, *named, fails="the bank of --normals was")
    assert "and is none" in said
    assert all(line["decision"] is None for line in lines_of(run("predict", detector, good)))


def test_what_is_ignored_and_the_view_are_part_of_a_calibration(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good, mask = labelled / "nut" / "good", tmp_path / "mask.png"
    left = np.zeros((40, 48), np.uint8)
    left[:, :24] = 255
    Image.fromarray(left).save(mask)
    run("calibrate", detector, good, "--ignore", mask)
    lines = lines_of(run("predict", detector, good, "--ignore", mask))
    limits = Calibration.load(tmp_path / "detector-calibration.json").limits("")
    assert limits.pixel
    peaks = [line["peak"] for line in lines]
    assert 0 < limits.pixel.value - max(peaks) < np.std(peaks)
    run("predict", detector, good, fails="what --ignore leaves out was")
    again = ("--ignore", mask, "--letterbox")
    run("predict", detector, good, *again, fails="made square was squash and is letterbox")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recall", "0.9"], "--recall is of the method recall"),
        (["--method", "f1-max", "--false-alarms", "0.1"], "is of the method conformal and tol"),
        (["--method", "manual"], "needs --threshold, --pixel-threshold or both"),
    ],
)
def test_options_go_with_their_method(
    run: Command, detector: Path, labelled: Path, words: list[str], message: str
) -> None:
    run("calibrate", detector, labelled, *words, fails=message)


def test_unlabelled_images_beside_good_ones_are_left_out(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    shutil.copy(labelled / "nut" / "good" / "00.png", labelled / "nut" / "loose.png")
    Image.new("RGB", (48, 40)).save(labelled / "nut" / "loose.png")
    run("calibrate", detector, labelled / "nut")
    notes = Calibration.load(tmp_path / "detector-calibration.json").notes
    assert any("without a label" in note and "loose.png" in note for note in notes)


def test_a_place_that_cannot_be_written_is_told_first(
    run: Command, detector: Path, labelled: Path
) -> None:
    with pytest.raises(SpgError, match="does not exist"):
        Calibration.load(labelled / "none.json")
    run("calibrate", detector, labelled / "nut" / "good", "--out", "/dev/null/x", fails="/dev/null")


def test_images_of_standard_input_calibrate_as_their_folder_does(
    run: Command, detector: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = labelled / "nut" / "good"
    paths = sorted(good.iterdir())
    run("calibrate", detector, good)
    (tmp_path / "list").write_text("".join(f"{path}\n" for path in paths))
    with (tmp_path / "list").open("rb", buffering=0) as stream:
        monkeypatch.setattr("spg_pipe.predict.items.open", lambda *_, **__: stream, raising=False)
        run("calibrate", detector, "-", "--out", tmp_path / "piped.json")
    folder, piped = (
        Calibration.load(tmp_path / name) for name in ("detector-calibration.json", "piped.json")
    )
    assert piped.groups == folder.groups


def test_frames_of_a_video_calibrate(
    run: Command, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 255, (19, 40, 48, 3), dtype=np.uint8)

    def frames_of(source: str, every: int) -> Iterator[Item]:
        return (Item(f"{number}", frame) for number, frame in enumerate(frames))

    monkeypatch.setattr("spg_pipe.pipeline.predict.frames_of", frames_of)
    (tmp_path / "line.mp4").touch()
    run("calibrate", detector, tmp_path / "line.mp4")
    limits = Calibration.load(tmp_path / "detector-calibration.json").limits("")
    assert len(limits.scores) == 19


@pytest.mark.parametrize("view", [(), ("--crop",), ("--ignore", "mask.png")])
def test_a_mask_of_another_size_is_an_error_that_names_it(
    run: Command, detector: Path, labelled: Path, tmp_path: Path, view: tuple[str, ...]
) -> None:
    Image.fromarray(np.eye(40, 48, dtype=np.uint8)).save(tmp_path / "mask.png")
    Image.new("L", (24, 20), 255).save(labelled / "nut/ground_truth/dent/01_mask.png")
    said = run(
        "calibrate", detector, labelled / "nut", "--method", "f1-max", *view, fails="24×20 pixels"
    )
    assert "01_mask.png" in said


def test_only_a_calibration_is_replaced_and_it_is_said(
    run: Command, detector: Path, labelled: Path, tmp_path: Path
) -> None:
    good, recipe = labelled / "nut" / "good", tmp_path / "params.yaml"
    recipe.write_text("name: mine\n")
    run("calibrate", detector, good, "--out", recipe, fails="is no calibration that could be")
    run("calibrate", detector, good, "--out", tmp_path / "parts", fails="is no calibration that")
    assert recipe.read_text() == "name: mine\n"
    assert "Replaced" not in run("calibrate", detector, good, says=True)
    said = run("calibrate", detector, good, "--false-alarms", "0.1", says=True)
    path = tmp_path / "detector-calibration.json"
    assert f"Replaced: {path}, which was made " in said
    assert Calibration.load(path).false_alarms == 0.1
