"""Advice about folders leads somewhere: what a message says is done, and then it works."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from layouts import photos, put, save, scanned, synthesised, texture, write_split_file
from PIL import Image
from pipeline.test_parts import command

from spg_pipe.errors import SpgError
from spg_pipe.predict.items import find_items

ROD = ("rod/good/1.png", "rod/dent/2.png")
GOOD = [("good/1.png", "good"), ("dent/2.png", "dent")]


def defects(manifest):
    return list(zip(manifest.table["path"], manifest.table["defect"], strict=True))


def refused(words, layout, root, **options):
    """The message about a folder, which has these words."""
    with pytest.raises(SpgError, match=words) as error:
        scanned("parts", layout, root, **options)
    return str(error.value)


def test_one_folder_beside_categories(tmp_path):
    root = photos(tmp_path / "parts", *ROD, "dent/3.png")
    refused("Give the folder of one category as the root, or move what does not", "folder", root)
    assert defects(scanned("parts", "folder", root / "rod")) == GOOD
    (root / "dent").rename(tmp_path / "elsewhere")
    assert len(scanned("parts", "folder", root)) == 2


@pytest.mark.parametrize(
    ("more", "words", "moves"),
    [
        (
            ("dent/2.jpg", "masks/dent/2.png"),
            r"share one name.* Rename one of them \(and its mask\)",
            {"dent/2.jpg": "dent/3.jpg"},
        ),
        (
            ("dent/2_mask.png", "masks/dent/2.png"),
            "Several masks fit .*Keep one of them",
            {"dent/2_mask.png": "../2_mask.png"},
        ),
    ],
)
def test_names_that_fit_twice(tmp_path, more, words, moves):
    root = photos(tmp_path / "parts", "good/1.png", "dent/2.png")
    put(photos(root, more[0]), more[1])
    refused(words, "folder", root)
    for old, new in moves.items():
        (root / old).rename(root / new)
    assert "masks/dent/2.png" in scanned("parts", "folder", root).table["mask"].tolist()


def test_names_that_are_not_there(tmp_path):
    root = photos(tmp_path, *ROD)
    said = refused("has no category rood. Did you mean rod", "folder", root, categories=["rood"])
    (name,) = re.findall(r"Did you mean (\w+)\?", said)
    assert len(scanned("parts", "folder", root, categories=[name])) == 2
    said = refused("knows no training split: use", "folder", root, split="train")
    for split in re.findall("`(test|all)`", said):
        assert len(scanned("parts", "folder", root, split=split)) == 2
    said = refused("Unpack the data there, or set the root", "folder", tmp_path / "other")
    (place,) = re.findall(r"No folder for dataset parts at (/.+?)\. The folder layout", said)
    photos(Path(place), "good/1.png")
    assert len(scanned("parts", "folder", tmp_path / "other")) == 1
    refused("images? more than once.* Remove the repeated set", "folder", root, sets=("rod", "rod"))
    assert len(scanned("parts", "folder", root, sets=("rod",))) == 2


def test_files_that_cannot_be_used(tmp_path):
    root = photos(tmp_path / "parts", "good/1.png", "dent/2.png", "dent/3.png")
    (root / "dent/2.png").write_bytes(b"no image")
    refused("Repair or remove them, or leave them out with --skip-bad", "folder", root)
    assert len(scanned("parts", "folder", root, skip_bad=True)) == 2
    (root / "dent/2.png").unlink()
    assert len(scanned("parts", "folder", root)) == 2
    latin = (root / "dent/3.png").rename(root / "dent" / os.fsdecode(b"caf\xe9.png"))
    refused(r"caf.+\.png' is not valid UTF-8.* Rename the file", "folder", root)
    latin.rename(root / "dent/café.png")
    assert len(scanned("parts", "folder", root)) == 2


def test_the_split_file_of_visa_and_an_incomplete_copy(tmp_path):
    rows = [("cup", "test", "normal", f"cup/Data/Images/Normal/{i}.JPG", "") for i in range(2)]
    write_split_file(tmp_path, rows)
    refused("No category .*expected a folder <category>/Data/Images", "visa", tmp_path)
    photos(tmp_path, rows[0][3])
    refused("The copy of the dataset is incomplete: unpack", "visa", tmp_path)
    photos(tmp_path, rows[1][3])
    assert len(scanned("cups", "visa", tmp_path)) == 2


def test_predict_and_its_folders(tmp_path):
    root = photos(tmp_path / "shots", "1.png", "masks/2.png")
    with pytest.raises(SpgError, match=r"holds the images themselves\. Choose a folder of its own"):
        find_items([str(root)], tmp_path)
    assert len(find_items([str(root)], tmp_path / "out").listed) == 1
    (root / "1.png").unlink()
    with pytest.raises(SpgError, match=r"(?s)has no images .*masks/2\.png.*name it itself"):
        find_items([str(root)], tmp_path / "out")
    assert len(find_items([str(root / "masks")], tmp_path / "out").listed) == 1


def test_synthesise_and_its_folders(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("good/1.png", "good/2.png"):
        save(texture((48, 64), rng), tmp_path / "parts" / name)
    source = scanned("parts", "folder", tmp_path / "parts")
    with pytest.raises(SpgError, match=r"lies among the source's images .*Name a folder outside"):
        synthesised(source, tmp_path / "parts/made")
    (tmp_path / "made").mkdir()
    (tmp_path / "made/mine.txt").write_text("")
    with pytest.raises(SpgError, match="Name another folder, or move it away first"):
        synthesised(source, tmp_path / "made")
    (tmp_path / "made/mine.txt").unlink()
    assert synthesised(source, tmp_path / "made")
    said = refused("holds synthetic.json.* Use the layout synthetic", "folder", tmp_path / "made")
    (layout,) = re.findall(r"Use the layout (\w+)", said)
    assert len(scanned("made", layout, tmp_path / "made")) == 4


def test_a_mask_that_was_drawn_on_the_unturned_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = put(photos(tmp_path / "parts", "good/0.png"), "dent/1_mask.png")
    Image.new("L", (7, 5), 90).save(root / "dent/1.jpg", exif=exif)
    refused("draw the mask on the upright image, or remove the tag", "folder", root)
    Image.open(root / "dent/1.jpg").save(root / "dent/1.jpg")
    assert len(scanned("parts", "folder", root)) == 2


def test_a_command_that_a_message_prints_takes_any_file_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, said = command(capsys, "recipe", "use", "demo", "--params", """my "best" one's.yaml""")
    assert code == 0, said
    (printed,) = re.findall(r"`spg-pipe extract (--params [^`]+)`", " ".join(said.split()))
    code, out, _ = command(capsys, "datasets", *shlex.split(printed))
    assert (code, "demo-mvtec" in out) == (0, True)
