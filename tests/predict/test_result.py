"""A line of predictions.jsonl, and its published JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from spg_pipe.errors import SpgError
from spg_pipe.predict.regions import regions_of
from spg_pipe.predict.result import (
    SCHEMA,
    Failure,
    Files,
    Result,
    json_schema,
    line_of,
    parse_line,
    row_of,
)

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas" / "prediction-1.json"


@pytest.fixture
def result() -> Result:
    """With a threshold, a region and a picture."""
    found = np.zeros((6, 8), np.float32)
    found[1:3, 2:5] = 0.7
    regions, left_out = regions_of(found, 0.5)
    return Result(
        path="a/β\n.png",
        sha256="0" * 64,
        score=1.5,
        decision="anomalous",
        threshold=1.0,
        parts={"share_map_top": 0.25},
        height=6,
        width=8,
        peak=0.7,
        peak_row=1,
        peak_column=2,
        pixel_threshold=0.5,
        regions=regions,
        regions_left_out=left_out,
        files=Files(overlay="overlays/a.jpg"),
        protocol="default",
    )


def test_a_line_is_read_back_as_it_was_written(result: Result) -> None:
    line = line_of(result)
    assert "\n" not in line
    assert parse_line(line) == result
    assert json.loads(line)["schema"] == SCHEMA
    assert json.loads(line)["regions"][0]["bbox"] == [2, 1, 3, 2]


def test_a_line_tells_of_an_image_that_could_not_be_judged() -> None:
    failure = Failure(path="b.png", error="it is cut off")
    assert parse_line(line_of(failure)) == failure
    assert row_of(failure) == {"path": "b.png", "error": "it is cut off"}


def test_a_line_of_another_version_is_refused(result: Result) -> None:
    other = line_of(result).replace(SCHEMA, "spg-pipe/prediction/9")
    with pytest.raises(SpgError, match=r"is no spg-pipe/prediction/1 .*schema.*predict. again"):
        parse_line(other)
    with pytest.raises(SpgError, match="invalid JSON"):
        parse_line(line_of(result)[:40])


def test_a_row_is_flat_and_leaves_out_what_there_is_not(result: Result) -> None:
    row = row_of(result)
    assert row["share_map_top"] == 0.25
    assert row["overlay"] == "overlays/a.jpg"
    assert row["regions"] == 1
    assert not {"p_value", "map", "group", "parts", "files", "sha256"} & set(row)


def test_the_published_schema_is_the_model_s() -> None:
    assert json.loads(PUBLISHED.read_text()) == json.loads(json_schema()), (
        "Write it again: python -c 'from spg_pipe.predict.result import json_schema; "
        'print(json_schema(), end="")\' > docs/schemas/prediction-1.json'
    )


def test_a_line_has_what_the_published_schema_asks_for(result: Result) -> None:
    """The names of every object, and that each value is of a type that is allowed for it."""
    schema = json.loads(PUBLISHED.read_text())
    types = {"string": str, "integer": int, "number": int | float, "array": list, "object": dict}

    def check(value: object, rule: dict) -> None:
        rule = schema["$defs"][rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
        if "anyOf" in rule:
            null = {"type": "null"} in rule["anyOf"]
            if not (value is None and null):
                check(value, rule["anyOf"][0])
            return
        assert isinstance(value, types[rule["type"]]), (value, rule)
        if isinstance(value, dict) and "properties" in rule:
            assert set(value) == set(rule["properties"]) == set(rule["required"])
            for name, each in value.items():
                check(each, rule["properties"][name])
        if isinstance(value, list):
            each_rule = rule.get("prefixItems") or [rule["items"]] * len(value)
            for each, one in zip(value, each_rule, strict=True):
                check(each, one)

    check(json.loads(line_of(result)), {"$ref": "#/$defs/Result"})
    check(json.loads(line_of(Failure(path="x", error="y"))), {"$ref": "#/$defs/Failure"})
