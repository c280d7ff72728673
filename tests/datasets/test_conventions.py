"""How people keep images, masks and labels: each convention is read, or a message tells the way.

The tables in conventions/ hold the folders; what a line of them means stands in benchmarks.yaml.
"""

import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from layouts import photos, put, save, scanned

from spg_pipe.errors import SpgError
from spg_pipe.predict.items import find_items

TABLES = sorted((Path(__file__).parent / "conventions").glob("*.yaml"))
CONVENTIONS = [row for table in TABLES for row in yaml.safe_load(table.read_text())]
LABELS = {"good": 0, "?": 255}
"""Of everything that is no defect."""


class File(NamedTuple):
    """A line of a tree."""

    path: str
    what: str
    mask: str
    """Below the dataset's root: a file, or a folder of parts; empty if there is none."""


def files_of(row):
    lines = [re.split(r" {2,}", line.strip()) for line in row["tree"].splitlines()]
    return [File(path, what, "".join(mask)) for path, what, *mask in lines]


def write(folder, row):
    """The tree of a row below a folder, in pictures of a few pixels; returns the dataset's root."""
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6] = 255
    for file in files_of(row):
        path = folder / file.path
        rng = np.random.default_rng(zlib.crc32(file.path.encode()))
        pixels = rng.integers(30, 220, (6, 8, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.what in ("file", "depth"):
            path.write_text(row.get("texts", {}).get(file.path, ""))
        else:
            what = "mask" if file.path in row.get("masks", ()) else file.what
            save({"mask": mask, "empty": mask * 0}.get(what, pixels), path)
    return folder / row.get("root", "")


def expected(row, root):
    """Image → label, defect and mask; and the images that only `predict` takes."""
    images, unread = {}, set()
    for file in files_of(row):
        if row.get("root") and not file.path.startswith(f"{row['root']}/"):
            continue
        path = file.path.removeprefix(f"{row.get('root', '')}/")
        if file.what == "unread":
            unread.add(path)
        elif file.what not in ("mask", "empty", "depth", "hidden", "file"):
            defect = "" if file.what == "?" else file.what
            images[path] = [LABELS.get(file.what, 1), defect, file.mask]
    return images, unread


def read(manifest):
    columns = [manifest.table[name].tolist() for name in ("path", "label", "defect", "mask")]
    return {path: outcome for path, *outcome in zip(*columns, strict=True)}


@pytest.mark.parametrize("row", CONVENTIONS, ids=[row["name"] for row in CONVENTIONS])
def test_a_convention_is_read_as_its_documentation_draws_it(tmp_path, row):
    root = write(tmp_path / "set", row)
    images, unread = expected(row, root)
    manifest = scanned("set", row["layout"], root, split="all")
    assert read(manifest) == images
    notes = "\n".join(manifest.notes)
    assert [words for words in row.get("notes", ()) if words not in notes] == []
    judged = find_items([str(root)], tmp_path / "out")
    assert {item.name for item in judged.listed} == {*images, *unread}


def followed(layout, root):
    """The manifest that the messages lead to, whatever layout and root one starts with."""
    tried = []
    while (layout, root) not in tried:
        tried.append((layout, root))
        try:
            return scanned("set", layout, root, split="all")
        except SpgError as error:
            message = str(error)
        path = r"(/.+?)(?=: it |[.] [A-Z]|[.]$| [(]|, or)"
        way = re.search(rf"the layout `?(\w+)`?(?: with the root {path}|[,.])", message, re.I)
        if way := way or re.search(rf"()use {path[:6]} as the root|in (/.+?): use it as", message):
            layout, root = way[1] or layout, Path(way[2] or root)
    pytest.fail(f"a circle: {tried}\n{message}")


@pytest.mark.parametrize("row", CONVENTIONS, ids=[row["name"] for row in CONVENTIONS])
def test_whatever_layout_one_starts_with_messages_lead_to_the_labels(tmp_path, row):
    root = write(tmp_path / "set", row)
    right = {root / path: label for path, (label, *_) in expected(row, root)[0].items()}
    for layout in ("mvtec", "visa", "folder"):
        table = (manifest := followed(layout, root)).table
        labels = {manifest.root / p: n for p, n in zip(table["path"], table["label"], strict=True)}
        assert {path: label for path, label in labels.items() if path in right} == right, layout


def test_what_looks_like_masks_is_matched_when_its_folder_is_called_so(tmp_path):
    root = photos(tmp_path / "set", "good/1.png", "NG/2.png")
    put(root, "binary/2.png")
    assert "call their folder masks/: binary/2.png" in scanned("set", "folder", root).notes[-1]
    (root / "binary").rename(root / "masks")
    assert read(scanned("set", "folder", root))["NG/2.png"] == [1, "NG", "masks/2.png"]


def test_cameras_below_the_classes_of_mvtec(tmp_path):
    root = photos(tmp_path / "set", "rod/test/good/cam 1/1.png", "rod/test/dent/cam 1/2.png")
    for layout in ("mvtec", "visa", "folder"):
        assert set(followed(layout, root).table["label"]) == {0, 1}


def test_masks_beside_the_categories_and_labels_that_lie_too_deep_are_told(tmp_path):
    root = photos(tmp_path / "set", "images/train/good/1.png", "images/test/dent/2.png")
    put(root, "masks/test/dent/2.png")
    manifest = scanned("set", "mvtec", root)
    assert read(manifest) == {"images/test/dent/2.png": [1, "dent", ""]}
    assert (
        "1 folder of masks in no category, ignored (move it into one): masks" in manifest.notes[-1]
    )
    (root / "masks").rename(root / "images" / "masks")
    mask = "images/masks/test/dent/2.png"
    assert read(scanned("set", "mvtec", root)) == {"images/test/dent/2.png": [1, "dent", mask]}
    root = photos(tmp_path / "plant", "line 1/may/OK/1.png", "line 1/may/NG/2.png")
    (note,) = scanned("set", "folder", root).notes
    assert "2 images without a label: line 1/may/OK/ lies too deep" in note
    (start,) = re.findall(r"use the layout folder with the root (/.+)$", note)
    assert set(scanned("set", "folder", Path(start)).table["label"]) == {0, 1}
