"""Damaged and hostile split files of VisA: read, or refused with one message."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import yaml
from e2e.helpers import must, spg
from hypothesis import given
from hypothesis import strategies as st
from layouts import write_visa

from fuzz.harness import ends_well
from spg_pipe.datasets.layouts.visa import SPLIT_FILE

CELLS = '| |..|../x|/etc/passwd|a/../../b|candle|train|test|normal|anomaly|"|,|é|\u2028|candle/Data'
LONG = ["x" * 300, "x" * 200_000, "\0", "\x1b[2J", "a\nb", "\ufeff"]


@pytest.fixture(scope="module")
def visa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A folder with a recipe and a set in the visa layout, and the rows of its split file."""
    folder = tmp_path_factory.mktemp("split")
    write_visa(folder / "v", size=(16, 16))
    row = {"name": "v", "layout": "visa", "root": "v", "split": "all"}
    recipe = {"name": "x", "datasets": [row], "auxiliaries": [], "directions": []}
    (folder / "params.yaml").write_text(yaml.safe_dump(recipe))
    must(spg("prepare", cwd=folder))  # imports, too, which run a program of the system
    return folder, list(csv.reader((folder / "v" / SPLIT_FILE).open()))


@given(data=st.data())
def test_a_split_file_is_read_or_refused_with_one_message(visa, data: st.DataObject) -> None:
    folder, rows = visa[0], [list(row) for row in visa[1]]
    for _ in range(data.draw(st.integers(0, 3))):
        row = data.draw(st.sampled_from(rows))
        place = data.draw(st.integers(0, len(row)))
        cells = st.sampled_from([*CELLS.split("|"), *LONG])
        row[place : place + 1] = data.draw(st.lists(cells, max_size=2))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    content = text.getvalue().encode()
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(content)))
        content = content[:start] + data.draw(st.binary(max_size=5)) + content[start + 2 :]
    (folder / "v" / SPLIT_FILE).write_bytes(content)
    ends_well("prepare", cwd=folder)
