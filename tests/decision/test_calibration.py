"""A calibration says what it holds for, and is refused for anything else."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from spg_pipe.decision.calibration import (
    Calibration,
    Judging,
    Limits,
    Threshold,
    by_hand,
    place_beside,
)
from spg_pipe.errors import DamagedError, SpgError

JUDGING = Judging(detector="a" * 64)


def limits(threshold: float = 2.0) -> Limits:
    return Limits(
        image=Threshold(value=threshold, says="words"),
        pixel=Threshold(value=0.5, says="words"),
        scores=(0.0, 1.0, 1.0, 3.0),
        anomalous=0,
    )


def calibration(**changed: object) -> Calibration:
    content: dict[str, object] = {
        "judging": JUDGING,
        "method": "conformal",
        "false_alarms": 0.25,
        "confidence": None,
        "recall": None,
        "by_folder": False,
        "groups": {"": limits()},
        "notes": (),
        "made": date(2026, 1, 1),
        "valid_until": None,
        "versions": {},
    }
    return Calibration.model_validate(content | changed).sealed()


def test_a_score_above_the_threshold_is_anomalous() -> None:
    assert [limits().decide(score) for score in (1.9, 2.0, 2.1)] == [
        "normal",
        "normal",
        "anomalous",
    ]
    assert [limits().p_value(score) for score in (-1, 0, 1, 2, 4)] == [1.0, 1.0, 0.8, 0.4, 0.2]


def test_without_normal_images_there_is_no_p_value_and_without_a_threshold_no_decision() -> None:
    hand = by_hand(None, 0.5)
    assert (hand.decide(1), hand.p_value(1), hand.pixel and hand.pixel.value) == (None, None, 0.5)
    assert by_hand(1.0, None).decide(1.5) == "anomalous"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = place_beside(tmp_path / "detectors" / "mine")
    assert path == tmp_path / "detectors" / "mine-calibration.json"
    written = calibration(valid_until=date(2027, 1, 1))
    written.save(path)
    assert Calibration.load(path) == written


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration().save(path)
    path.write_text(path.read_text().replace('"value": 2.0', '"value": 9.0'))
    with pytest.raises(DamagedError, match=r"does not give its fingerprint.*spg-pipe calibrate"):
        Calibration.load(path)


def test_the_day_on_which_it_was_made_is_no_part_of_its_fingerprint() -> None:
    same, later = calibration(), calibration(made=date(2026, 5, 1))
    assert same.fingerprint == later.fingerprint
    assert calibration(valid_until=date(2027, 1, 1)).fingerprint != same.fingerprint


def test_limits_are_of_the_group_or_of_all() -> None:
    assert calibration().limits("camera").image == limits().image
    two = calibration(by_folder=True, groups={"left": limits(), "right": limits(3)})
    assert two.limits("right").decide(2.5) == "normal"
    with pytest.raises(SpgError, match=r"no threshold for images of the folder up.*left, right"):
        two.limits("up")


def test_another_judging_is_refused_with_what_differs() -> None:
    ours = calibration()
    ours.require(JUDGING, date(2030, 1, 1), "file.json")
    other = Judging(detector="b" * 64, tiles=(448, 896), fit="letterbox")
    expected = (
        "file.json does not hold here: the detector was aaaaaaaa and is bbbbbbbb; --tiles was none "
        "and is 448,896; how an image is made square was squash and is letterbox"
    )
    with pytest.raises(SpgError, match=expected):
        ours.require(other, date(2030, 1, 1), "file.json")


def test_it_holds_until_its_last_day() -> None:
    ours = calibration(valid_until=date(2026, 3, 1))
    ours.require(JUDGING, date(2026, 3, 1), "file.json")
    with pytest.raises(SpgError, match="held until 2026-03-01"):
        ours.require(JUDGING, date(2026, 3, 2), "file.json")


def test_scores_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        Limits(image=None, pixel=None, scores=(1.0, 0.0), anomalous=0)
