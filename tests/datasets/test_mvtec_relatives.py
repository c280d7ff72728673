"""Folders like MVTec AD's: what people changed in them, and advice that leads to a layout."""

import re

import pytest
from layouts import photos, put, scanned

from spg_pipe.datasets.layouts.catalogue import LAYOUTS
from spg_pipe.errors import SpgError


def scan(layout, root, split="all"):
    """Path → (defect, label, mask), and the notes."""
    found = LAYOUTS[layout].scan(root, split, lambda _: True)
    return {e.path: (e.defect, e.label, e.mask) for e in found.entries}, found.notes


def test_ok_and_ko_are_words_that_btad_uses(tmp_path):
    photos(tmp_path, "01/train/ok/0.bmp", "01/test/ok/1.bmp", "01/test/ko/2.bmp")
    put(tmp_path, "01/ground_truth/ko/2.png")
    entries, notes = scan("mvtec", tmp_path)
    assert entries == {
        "01/train/ok/0.bmp": ("good", 0, ""),
        "01/test/ok/1.bmp": ("good", 0, ""),
        "01/test/ko/2.bmp": ("ko", 1, "01/ground_truth/ko/2.png"),
    }
    assert notes == ["01: 1 folder name taken for good, normal images: ok"]


def test_masks_in_a_folder_of_the_images_name_are_one_mask(tmp_path):
    photos(tmp_path, "box/test/good/0.png", "box/test/logical/0.png", "box/validation/good/1.png")
    put(tmp_path, *(f"box/ground_truth/logical/0/00{part}.png" for part in range(2)))
    entries, notes = scan("mvtec", tmp_path)
    assert entries["box/test/logical/0.png"] == ("logical", 1, "box/ground_truth/logical/0")
    assert notes == [
        "box: 1 image in validation, in no class of train/ or test/, ignored: "
        "box/validation/good/1.png"
    ]


def test_mvtec_ad_2_is_read_as_far_as_it_is_labelled(tmp_path):
    photos(tmp_path, "can/train/good/0.png", "can/validation/good/1.png")
    photos(tmp_path, "can/test_public/good/2.png", "can/test_public/bad/3.png")
    photos(tmp_path, "can/test_private/4.png", "can/test_private_mixed/5.png")
    put(tmp_path, "can/test_public/ground_truth/bad/3_mask.png")
    entries, notes = scan("mvtec", tmp_path)
    assert list(entries) == [
        "can/train/good/0.png",
        "can/test_public/bad/3.png",
        "can/test_public/good/2.png",
    ]
    mask = "can/test_public/ground_truth/bad/3_mask.png"
    assert entries["can/test_public/bad/3.png"] == ("bad", 1, mask)
    assert [note.partition(",")[0] for note in notes] == [
        f"can: 1 image in {part}" for part in ("test_private", "test_private_mixed", "validation")
    ]
    assert len(scan("mvtec", tmp_path, "test")[0]) == 2


def test_mvtec_3d_ad_is_read_without_its_depth(tmp_path):
    photos(
        tmp_path, "pie/test/good/rgb/0.png", "pie/test/hole/rgb/1.png", "pie/test/hole/xyz/1.png"
    )
    put(tmp_path, "pie/test/hole/gt/1.png", "pie/test/good/gt/0.png")
    entries, notes = scan("mvtec", tmp_path)
    assert entries == {
        "pie/test/good/rgb/0.png": ("good", 0, ""),
        "pie/test/hole/rgb/1.png": ("hole", 1, "pie/test/hole/gt/1.png"),
    }
    assert notes == [
        "pie: 1 mask by the folder gt/: pie/test/hole/gt/1.png",
        "pie: 1 folder left out, coordinates, not pictures: pie/test/hole/xyz",
    ]


def test_a_category_without_any_mask_counts_at_image_level(tmp_path):
    photos(tmp_path, "cell/train/good/0.png", "cell/test/good/1.png", "cell/test/not good/2.png")
    manifest = scanned("cells", "mvtec", tmp_path)
    assert manifest.table["label"].tolist() == [0, 1]
    assert manifest.table["mask_state"].tolist() == [0, 2]
    assert manifest.notes == (
        "cell: 1 defect image without a mask, as all in this category: left out of pixel "
        "metrics: cell/test/not good/2.png",
    )


TREES = {
    "no masks": ["cell/train/good/0.png", "cell/test/good/1.png", "cell/test/not good/2.png"],
    "OK and NG": ["cell/train/OK/0.png", "cell/test/OK/1.png", "cell/test/NG/2.png"],
    "MVTec AD 2": [
        "can/test_public/good/0.png",
        "can/test_public/bad/1.png",
        "can/train/good/2.png",
    ],
    "one more folder": ["all/cell/test/good/0.png", "all/cell/test/bad/1.png"],
    "VisA without a split file": [
        *("candle/Data/Images/Normal/0.JPG", "candle/Data/Images/Anomaly/1.JPG"),
    ],
    "classes": ["good/0.png", "bad/1.png"],
    "no labels": ["2.png", "more/3.png"],
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("layout", ["mvtec", "visa", "folder"])
@pytest.mark.parametrize("inside", [False, True])
def test_advice_leads_to_the_images(tmp_path, tree, layout, inside):
    """Whatever layout and root one starts with, the messages name what reads the folder."""
    root = photos(tmp_path / "data", *TREES[tree])
    if inside:
        root = sorted(folder for folder in root.iterdir() if folder.is_dir())[0]
    tried = []
    while (layout, root) not in tried:
        tried.append((layout, root))
        try:
            assert len(scanned("mine", layout, root)) > 0
            return
        except SpgError as error:
            (advice,) = re.findall(
                r"the layout (\w+) with the root (\S+?)[.:,]?(?= |$)", str(error)
            )
            layout, root = advice[0], type(root)(advice[1])
    pytest.fail(f"a circle: {tried}")


def test_the_advice_on_some_missing_masks_works(tmp_path):
    photos(tmp_path, "cell/test/good/0.png", "cell/test/dent/1.png", "cell/test/dent/2.png")
    put(tmp_path, "cell/ground_truth/dent/1_mask.png")
    with pytest.raises(
        SpgError, match=r"1 defect image .*dent/2\.png .*but 1 mask in the category: "
    ) as error:
        scanned("cells", "mvtec", tmp_path)
    test = tmp_path / "cell" / "test"
    assert f"layout folder with the root {test}:" in str(error.value)
    (tmp_path / "cell" / "ground_truth").rename(test / "ground_truth")
    assert scanned("cells", "folder", test).table["mask"].tolist() == [
        "",
        "ground_truth/dent/1_mask.png",
        "",
    ]
