"""The coco layout: annotation files that name images and draw their masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from layouts import photos, scanned
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks
from scipy.ndimage import maximum_filter

from spg_pipe.errors import SpgError
from spg_pipe.images.annotations import drawn
from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.reading import read_mask

SQUARE = [[2, 1, 5, 1, 5, 3, 2, 3]]
"""Pixels of rows 1, 2 and columns 2, 3, 4."""
BIT = st.integers(0, 1)


def coco(root: Path, *objects: dict[str, Any], file: str = "annotations/all.json") -> Path:
    """Images 1 to 3 of 5×7 pixels, categories 1 (dent), 2 (scratch) and 3 (OK), these objects."""
    names = [f"{number}.png" for number in (1, 2, 3)]
    photos(root, *(f"images/{name}" for name in names))
    content = {
        "info": {"description": "x"},
        "images": [
            {"id": number, "file_name": name, "height": 5, "width": 7, "licence": 1}
            for number, name in enumerate(names, start=1)
        ],
        "categories": [{"id": n, "name": c} for n, c in enumerate(("dent", "scratch", "OK"), 1)],
        "annotations": list(objects),
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


def marked(image: int, category: int = 1, shape: object = SQUARE) -> dict[str, Any]:
    """An object of a class in an image."""
    return {"id": 9, "image_id": image, "category_id": category, "segmentation": shape}


def test_images_without_annotations_are_normal_and_classes_name_defects(tmp_path):
    root = coco(tmp_path / "parts", marked(2), marked(2, 2), marked(3, 3))
    found = scanned("p", "coco", root)
    rows = found.table.set_index("path")
    assert rows["label"].to_dict() == {"images/1.png": 0, "images/3.png": 0, "images/2.png": 1}
    assert rows["defect"]["images/2.png"] == "dent+scratch"
    assert rows["mask"]["images/2.png"] == "annotations/all.json#2"
    assert rows["mask_state"].to_list() == [0, 0, 1]
    assert set(rows["category"]) == {"parts"}
    assert any("OK" in note and "normal images" in note for note in found.notes)
    assert not [note for note in found.notes if "all.json" in note]


def drawn_from(root: Path, *shapes: object) -> np.ndarray:
    """The mask of an image of 5×7 pixels with objects of these shapes."""
    coco(root, *(marked(2, 1, shape) for shape in shapes))
    return read_mask(root / "annotations" / "all.json#2", exif=False)


def test_polygons_and_run_lengths_draw_the_same_mask(tmp_path):
    expected = np.zeros((5, 7), np.uint8)
    expected[1:3, 2:5] = 1
    text = coco_masks.encode(np.asfortranarray(expected))["counts"].decode()
    for shape in (SQUARE, runs([11, 2, 3, 2, 3, 2, 12]), runs(text)):
        mask = drawn_from(tmp_path, shape)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)


def runs(counts: object) -> dict[str, object]:
    """Run lengths of an image of 5×7 pixels."""
    return {"size": [5, 7], "counts": counts}


def content_of(size: tuple[int, int], part: object) -> bytes:
    """What draws a mask of one object, as `mask_content` gives it."""
    return json.dumps({"size": size, "parts": [part]}).encode()


@given(mask=arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 60)), elements=BIT))
def test_compressed_run_lengths_are_pycocotools(mask):
    text = coco_masks.encode(np.asfortranarray(mask))["counts"].decode()
    part = {"size": mask.shape, "counts": text}
    np.testing.assert_array_equal(drawn(content_of(mask.shape, part)), mask)


@given(corners=arrays(float, st.tuples(st.integers(3, 9), st.just(2)), elements=st.floats(0, 60)))
def test_a_polygon_differs_from_pycocotools_at_its_border_alone(corners):
    polygon = corners.round(2).reshape(-1).tolist()
    theirs = coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects([polygon], 60, 60)))
    ours = drawn(content_of((60, 60), [polygon]))
    outline = Image.new("L", (60, 60))
    ends = [*map(tuple, corners - 0.5), tuple(corners[0] - 0.5)]
    ImageDraw.Draw(outline).line(ends, fill=1)
    near = maximum_filter(np.asarray(outline), 5)
    assert not (ours != theirs)[near == 0].any()


def test_several_objects_are_one_mask_and_a_change_is_seen(tmp_path):
    root = coco(tmp_path, marked(2))
    first = scanned("p", "coco", root)
    one = read_mask(root / "annotations/all.json#2", exif=False)
    coco(tmp_path, marked(2), marked(2, 2, [[0, 0, 1, 0, 1, 1, 0, 1]]))
    both = read_mask(root / "annotations/all.json#2", exif=False)
    assert (one.sum(), both.sum()) == (6, 7)
    again = scanned("p", "coco", root)
    assert first.table["mask_sha256"].iloc[-1] != again.table["mask_sha256"].iloc[-1]
    assert first.table["sha256"].to_list() == again.table["sha256"].to_list()


def test_a_box_alone_is_a_defect_without_a_mask(tmp_path):
    root = coco(tmp_path, marked(2, 1, [[]]), marked(3), marked(3, 2, None))
    found = scanned("p", "coco", root)
    assert found.table["mask_state"].to_list() == [0, 2, 2]
    assert "2 defect images with boxes alone, left out of pixel metrics" in "".join(found.notes)


def test_splits_are_those_that_files_and_folders_name(tmp_path):
    root = coco(tmp_path, marked(2), file="train/_annotations.coco.json")
    (root / "images").rename(root / "train" / "images")
    coco(root, marked(3), file="valid/_annotations.coco.json")
    (root / "images").rename(root / "valid" / "images")
    assert scanned("p", "coco", root, split="train").table["path"].iloc[-1] == "train/images/2.png"
    assert scanned("p", "coco", root).table["path"].iloc[-1] == "valid/images/3.png"
    assert len(scanned("p", "coco", root, split="all")) == 6


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images", 0, "file_name"), "../x.png", r"images\.0\.file_name: .*outside the folder"),
        (("images", 0, "file_name"), "9.png", r"1 image that all\.json names not found .*: 9\.png"),
        (("images", 0, "width"), 10**9, r"images\.0\.width: Input should be less"),
        (("images", 1, "height"), 6, r"is 7×5 pixels, but its mask .*all\.json#2 is 7×6"),
        (
            ("annotations", 0, "category_id"),
            7,
            r"annotations\.0\.category_id: there is no category",
        ),
        (("annotations", 0, "segmentation"), [[1, 2]], r"annotations\.0\.segmentation"),
        (
            ("annotations", 0, "segmentation"),
            [[1, 2, 3, 4, 5, float("inf")]],
            r"annotations\.0\.se",
        ),
        (("categories",), None, r"that can be read: categories: "),
    ],
)
def test_a_fault_of_the_file_is_named_by_its_place(tmp_path, place, value, message):
    root = coco(tmp_path, marked(2))
    file = root / "annotations" / "all.json"
    content = json.loads(file.read_text())
    target = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    file.write_text(json.dumps(content))
    with pytest.raises(SpgError, match=message):
        scanned("p", "coco", root)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "a number that is no x, y"),
        ({"size": [5, 7], "counts": [30]}, "run lengths that are not of 7×5 pixels"),
        ({"size": [7, 5], "counts": [35]}, "run lengths that are not of 7×5 pixels"),
        ({"size": [5, 7], "counts": "\x7f"}, "no text of COCO"),
        ({"size": [5, 7], "counts": "o"}, "are cut off"),
        ({"size": [5, 7], "counts": ""}, "run lengths that are not of"),
    ],
)
def test_a_shape_that_is_none_is_an_unusable_mask(tmp_path, shape, reason):
    root = coco(tmp_path, marked(2, 1, shape))
    with pytest.raises(UnusableFileError, match=reason):
        read_mask(root / "annotations/all.json#2", exif=False)
    found = scanned("p", "coco", root, skip_bad=True)
    assert [(bad.path, reason in bad.reason) for bad in found.skipped] == [("images/2.png", True)]


def test_a_root_without_a_coco_file_says_so(tmp_path):
    root = photos(tmp_path, "a.png")
    (root / "a.json").write_text('{"shapes": []}')
    with pytest.raises(SpgError, match="needs a COCO annotation file"):
        scanned("p", "coco", root)
