"""The csv layout: a table of paths, labels and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layouts import photos, save, scanned

from spg_pipe.errors import SpgError

HEADER = "path,label,mask"


def table(root: Path, *lines: str, header: str = HEADER, name: str = "parts.csv") -> Path:
    """Images a.png to e.png, a mask of d.png, an empty one, and a table of these lines."""
    photos(root, *(f"img/{name}.png" for name in "abcde"))
    mask = np.zeros((5, 7), np.uint8)
    save(mask, root / "masks" / "empty.png")
    mask[2, 3] = 1
    save(mask, root / "masks" / "d.png")
    (root / name).write_text("\n".join([header, *lines]), encoding="utf-8")
    return root


def test_labels_words_and_masks_say_what_an_image_is(tmp_path):
    root = table(
        tmp_path / "parts",
        "img/a.png,0,",
        "img/b.png,OK,",
        "img/c.png,1,",
        "img/d.png,scratch,masks/d.png",
        "img/e.png,,",
    )
    found = scanned("p", "csv", root)
    rows = found.table.set_index("path")
    assert rows["label"].to_dict() == {
        "img/a.png": 0,
        "img/b.png": 0,
        "img/c.png": 1,
        "img/d.png": 1,
        "img/e.png": 255,
    }
    assert rows["defect"].to_list() == ["good", "good", "", "defect", "scratch"]
    assert rows["mask"]["img/d.png"] == "masks/d.png"
    assert set(rows["category"]) == {"parts"}
    assert "1 defect image without a mask, left out of pixel metrics: img/c.png" in found.notes
    assert "1 image without a label: img/e.png" in found.notes
    assert not [note for note in found.notes if "parts.csv" in note and "not named" not in note]


def test_without_a_label_the_mask_decides(tmp_path):
    root = table(tmp_path, "img/a.png,,masks/empty.png", "img/d.png,,masks/d.png")
    assert scanned("p", "csv", root).table["label"].to_list() == [0, 1]


def test_optional_columns_order_and_other_columns_do_not_matter(tmp_path):
    header = "comment;split;label;path;defect;category;mask"
    lines = ("x;train;good;img/a.png;;screw;", '"a;b";test;1;img/d.png;bent;screw;masks/d.png')
    root = table(tmp_path, *lines, header="\ufeff" + header, name="any name.csv")
    assert scanned("p", "csv", root, split="train").table["path"].to_list() == ["img/a.png"]
    (row,) = scanned("p", "csv", root).table.to_dict("records")
    assert (row["category"], row["defect"], row["mask"]) == ("screw", "bent", "masks/d.png")
    assert len(scanned("p", "csv", root, split="all", categories=["screw"])) == 2


def test_a_folder_is_a_mask_of_parts(tmp_path):
    root = table(tmp_path, "img/d.png,1,masks")
    assert scanned("p", "csv", root).table["mask_state"].to_list() == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("img/a.png,2,", r"line 3: the label '2' is neither 0, 1 nor a word"),
        ("img/a.png,True,", r"line 3: the label 'True' is neither"),
        ("../a.png,0,", r"line 3: the path '\.\./a\.png' is empty or outside"),
        (",0,", r"line 3: the path '' is empty"),
        ("img/a.png,1,/etc/passwd", r"line 3: the mask '/etc/passwd' is outside"),
        ("img/f.png,0,", r"names 1 file that .* has not, or not as an image: line 3: img/f\.png"),
        ("parts.csv,0,", r"or not as an image: line 3: parts\.csv"),
        ("img/a.png,1,masks/f.png", r"line 3: masks/f\.png\. Correct the lines"),
        ("img/b.png,1,", r"names 1 image more than once: img/b\.png"),
    ],
)
def test_a_malformed_line_is_named_with_its_column(tmp_path, line, message):
    root = table(tmp_path, "img/b.png,0,", line)
    with pytest.raises(SpgError, match=message):
        scanned("p", "csv", root)


def test_a_root_without_one_table_says_what_there_is(tmp_path):
    root = photos(tmp_path, "a.png")
    (root / "scores.csv").write_text("path,score\na.png,1\n")
    with pytest.raises(SpgError, match=r"with the columns path and label; there is none"):
        scanned("p", "csv", root)
    for name in ("one.csv", "two.csv"):
        (root / name).write_text("path,label\na.png,0\n")
    with pytest.raises(SpgError, match=r"there are: one\.csv, two\.csv"):
        scanned("p", "csv", root)
