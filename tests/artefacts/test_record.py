"""An artefact's JSON is read whole or refused with a message that says what to do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.artefacts.record import FigureOrNaN, Record, read_record, write_record
from spg_pipe.errors import DamagedError, SpgError


class Part(Record):
    share: float
    layers: tuple[str, ...] = ()


class Sample(Record):
    kind: Literal["sample"] = "sample"
    format: Literal[2] = 2
    part: Part
    figures: dict[str, FigureOrNaN] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    fingerprint: str = ""


class Plain(Record):
    figure: FigureOrNaN


SAMPLE = Sample(
    part=Part(share=0.25, layers=("2", "4")),
    figures={"a": 1 / 3, "none": math.nan},
    versions={"torch": "1"},
).sealed()


def read(path: Path) -> Sample:
    return read_record(path, Sample, "sample", "spg-pipe make-sample")


def changed(path: Path, **values: Any) -> Path:
    """The sample's file with some keys changed; None takes a key away."""
    write_record(path, SAMPLE)
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def test_a_record_comes_back_to_the_bit(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", SAMPLE)
    back = read(tmp_path / "a.json")
    assert back.part == SAMPLE.part
    assert back.figures["a"] == 1 / 3
    assert math.isnan(back.figures["none"])
    assert json.loads((tmp_path / "a.json").read_text())["figures"]["none"] is None


def test_a_record_without_a_fingerprint_needs_none(tmp_path: Path) -> None:
    write_record(tmp_path / "a.json", Plain(figure=math.nan))
    assert math.isnan(read_record(tmp_path / "a.json", Plain, "plain", "make").figure)


def test_the_fingerprint_is_of_the_content_alone() -> None:
    other = SAMPLE.model_copy(update={"versions": {"torch": "2"}}).sealed()
    assert other.fingerprint == SAMPLE.fingerprint
    assert other.fingerprint == fingerprint(
        {
            "kind": "sample",
            "format": 2,
            "part": {"share": 0.25, "layers": ["2", "4"]},
            "figures": {"a": 1 / 3, "none": None},
        }
    )
    assert Sample(part=Part(share=0.5)).sealed().fingerprint != SAMPLE.fingerprint


def test_a_record_is_frozen_and_holds_no_infinity() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SAMPLE.format = 2
    with pytest.raises(ValidationError, match="finite"):
        Part(share=math.nan)
    with pytest.raises(ValidationError, match="infinity"):
        Plain(figure=math.inf)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": None}, "kind is missing"),
        ({"format": 1}, "format 1, and this version of spg-pipe reads format 2"),
        ({"part": None}, "part: field required"),
        ({"part": {"share": 0.25}}, "fingerprint"),
        ({"part": {"share": "0.25", "layers": []}}, r"part\.share: input should be a valid number"),
        ({"part": {"share": 0.5, "layers": ["2", "4"]}}, "fingerprint"),
        ({"more": 1}, "more: extra inputs are not permitted"),
        ({"versions": None}, "versions is missing"),
        ({"fingerprint": None}, "fingerprint is missing"),
        ({"fingerprint": ""}, "fingerprint"),
    ],
)
def test_what_was_not_written_like_this_is_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "a.json", **values)
    with pytest.raises(DamagedError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "`spg-pipe make-sample`" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"7", "\ufeff{}".encode(), b'{"a": NaN}', b"\xff\xfe\x00"]
)
def test_what_is_no_object_in_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"a\.json is not a whole sample"):
        read(tmp_path / "a.json")


def test_a_missing_file_and_another_kind_are_errors_of_the_path(tmp_path: Path) -> None:
    with pytest.raises(SpgError, match=r"a\.json does not exist.*`spg-pipe make-sample`"):
        read(tmp_path / "a.json")
    path = changed(tmp_path / "a.json", kind="detector")
    with pytest.raises(SpgError, match=r"is of a detector\. Expected: sample"):
        read(path)
