"""One walk for every caller: what counts as an image, and why the rest is left out."""

import itertools
import os
import unicodedata

import pytest
from layouts import photos, put, scanned, write_visa

from spg_pipe.datasets.walk import walk
from spg_pipe.predict.items import find_items


def left_out(root):
    return {
        reason.name: [path.relative_to(root).as_posix() for path in paths]
        for reason, paths in walk(root).left_out.items()
    }


@pytest.fixture
def tree(tmp_path):
    """An image in a folder, one behind a link, and one of everything that is left out."""
    root = put(
        tmp_path / "shots",
        *("a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.Trash-0/b.png", "._a.png"),
        *("__MACOSX/a.png", "sub/@eaDir/a.png/thumb.png", "$RECYCLE.BIN/c.png"),
        *("old/overlays/a.png.png", "overlays/d.png", "made/images/bolt/good/0.png"),
    )
    (root / "old" / "run.json").write_text('{\n  "kind": "predictions",\n')
    (root / "made" / "synthetic.json").write_text("{}")
    put(tmp_path / "disk", "b.png")
    (root / "line2").symlink_to(tmp_path / "disk", target_is_directory=True)
    (root / "loop").symlink_to(".", target_is_directory=True)
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "self").symlink_to("self")
    os.mkfifo(root / "pipe.png")
    (root / os.fsdecode(b"caf\xe9.txt")).write_text("")
    return root


def test_everything_that_is_left_out_has_a_reason(tree):
    names = [path.relative_to(tree).as_posix() for path in walk(tree).images]
    assert names == ["a.png", "line2/b.png", "overlays/d.png"]
    hidden = ("$RECYCLE.BIN", "._a.png", ".ipynb_checkpoints", "__MACOSX")
    assert left_out(tree) == {
        "NO_IMAGE": ["caf\udce9.txt", "old/run.json"],
        "HIDDEN": [*hidden, "sub/.Trash-0", "sub/@eaDir"],
        "HEAT_MAPS": ["old/overlays"],
        "SYNTHETIC": ["made"],
        "NOWHERE": ["gone.png", "self"],
        "CIRCLE": ["loop"],
        "SPECIAL": ["pipe.png"],
    }


def test_prepare_and_predict_see_the_same_and_say_the_same(tree, tmp_path):
    prepared = scanned("mine", "folder", tree)
    judged = find_items([str(tree)], tmp_path / "out")
    assert prepared.table["path"].tolist() == [item.name for item in judged.listed]
    assert set(judged.notes) < set(prepared.notes)
    assert "2 links left out, dangling: gone.png, self" in judged.notes
    assert judged.notes[0] == "2 files left out, not an image file: caf\\xe9.txt, old/run.json"
    assert len(judged.notes) == 7


def test_links_to_links_do_not_multiply_without_end(tmp_path):
    folders = [tmp_path / f"{number:02d}" for number in range(14)]
    put(folders[-1], "a.png")
    for outer, inner in itertools.pairwise(folders):
        outer.mkdir()
        for name in ("x", "y"):
            (outer / name).symlink_to(inner, target_is_directory=True)
    assert len(walk(folders[0]).images) == 16
    assert left_out(folders[0]).keys() == {"CIRCLE"}


def test_a_name_is_one_name_in_both_unicode_forms(tmp_path):
    composed, apart = (unicodedata.normalize(form, "Läsur_é") for form in ("NFC", "NFD"))
    root = photos(tmp_path / "parts", f"{apart}/{composed}.png", "good/0.png")
    put(root, f"ground_truth/{composed}/{apart}_mask.png")
    table = scanned("mine", "folder", root).table
    assert table["mask"].tolist() == ["", f"ground_truth/{composed}/{apart}_mask.png"]
    put(tmp_path / "products", f"{apart}/good/0.png", "other/good/1.png")
    assert len(scanned("mine", "folder", tmp_path / "products", categories=[composed])) == 1
    visa = write_visa(tmp_path / "visa", [composed])
    (visa / composed).rename(visa / apart)
    folder, split_file = visa / apart / "Data/Images/Anomaly", visa / "split_csv/1cls.csv"
    (folder / "000.JPG").rename(folder / f"{apart}.JPG")
    text = split_file.read_text()
    split_file.write_text(text.replace("Anomaly/000.JPG", f"Anomaly/{composed}.JPG"))
    manifest = scanned("visa", "visa", visa, categories=[composed])
    assert f"{apart}/Data/Images/Anomaly/{apart}.JPG" in manifest.table["path"].tolist()
    assert (len(manifest), [note for note in manifest.notes if "not named" in note]) == (4, [])
