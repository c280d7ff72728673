"""Damaged and hostile tables and annotation files of one's own: read, or refused in one message."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from e2e.helpers import must, spg
from hypothesis import given
from hypothesis import strategies as st
from layouts import photos, save

from fuzz.harness import ends_well

CELLS = [
    "",
    " ",
    "..",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "0",
    "1",
    "2",
    "-1",
    "good",
    "true",
    "nan",
    '"',
    ",",
    ";",
    "é",
    "\u2028",
    "masks",
    "img",
]
LONG = ["x" * 300, "x" * 200_000, "\0", "\x1b[2J", "a\nb", "\ufeff"]
ROWS = [
    ["path", "label", "mask", "category", "defect", "split"],
    ["img/a.png", "0", "", "", "", "train"],
    ["img/b.png", "scratch", "masks/b.png", "bolt", "", ""],
    ["img/c.png", "", "masks/b.png", "", "dent", "test"],
]
RUNS = {"size": [5, 7], "counts": [11, 2, 3, 2, 17]}
COCO: dict[str, Any] = {
    "images": [
        {"id": n, "file_name": f"img/{name}.png", "height": 5, "width": 7}
        for n, name in enumerate("abc")
    ],
    "annotations": [
        {"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]},
        {"image_id": 1, "category_id": 1, "segmentation": RUNS},
        {"image_id": 1, "category_id": 1, "segmentation": RUNS | {"counts": "Y10O"}},
    ],
    "categories": [{"id": 1, "name": "dent"}],
}
VALUES: list[Any] = [
    *(None, True, -1, 0, 10**12, 10**30, 0.5, float("nan"), float("inf"), "", "..", "/etc/passwd"),
    *([], {}, [[]], [[1]], [[1, 2, 3, 4, 5, 6]] * 50, {"size": [5, 7], "counts": "~" * 50}, *LONG),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set in the layout csv and one in the layout coco, and a recipe of each."""
    made = tmp_path_factory.mktemp("tables")
    for layout in ("csv", "coco"):
        photos(made / layout, "img/a.png", "img/b.png", "img/c.png")
        row = {"name": "x", "layout": layout, "root": layout, "split": "all"}
        recipe = {"name": "x", "datasets": [row], "auxiliaries": [], "directions": []}
        (made / f"{layout}.yaml").write_text(yaml.safe_dump(recipe))
    save(np.ones((5, 7), np.uint8), made / "csv" / "masks" / "b.png")
    write_table(made, ROWS)
    (made / "coco" / "all.json").write_text(json.dumps(COCO))
    for layout in ("csv", "coco"):  # imports, too, which run a program of the system
        must(spg("prepare", "--params", f"{layout}.yaml", cwd=made))
    return made


def write_table(folder: Path, rows: list[list[str]]) -> bytes:
    """Write the table, whose bytes are returned."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    content = text.getvalue().encode()
    (folder / "csv" / "parts.csv").write_bytes(content)
    return content


@given(data=st.data())
def test_a_table_is_read_or_refused_with_one_message(folder: Path, data: st.DataObject) -> None:
    rows = [list(row) for row in ROWS]
    for _ in range(data.draw(st.integers(0, 3))):
        row = data.draw(st.sampled_from(rows))
        place = data.draw(st.integers(0, len(row)))
        row[place : place + 1] = data.draw(st.lists(st.sampled_from([*CELLS, *LONG]), max_size=2))
    content = write_table(folder, rows)
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(content)))
        damaged = content[:start] + data.draw(st.binary(max_size=5)) + content[start + 2 :]
        (folder / "csv" / "parts.csv").write_bytes(damaged)
    ends_well("prepare", "--params", "csv.yaml", "--skip-bad", cwd=folder)


@given(data=st.data())
def test_annotations_are_read_or_refused_with_one_message(
    folder: Path, data: st.DataObject
) -> None:
    content = copy.deepcopy(COCO)
    for _ in range(data.draw(st.integers(1, 3))):
        target: Any = content
        while True:
            keys = list(target if isinstance(target, dict) else range(len(target)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(target[key], dict | list) and data.draw(st.integers(0, 4)):
                target = target[key]
                continue
            target[key] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
            break
    text = json.dumps(content).encode()
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(text)))
        text = text[:start] + data.draw(st.binary(max_size=5)) + text[start + 2 :]
    (folder / "coco" / "all.json").write_bytes(text)
    ends_well("prepare", "--params", "coco.yaml", "--skip-bad", cwd=folder)
