"""Masks are recognised by how people keep them, and never taken for images without a word."""

import numpy as np
import pytest
from layouts import photos, put, save, scanned
from PIL import Image

from spg_pipe.datasets import masks
from spg_pipe.datasets.names import is_normal
from spg_pipe.errors import SpgError
from spg_pipe.images import looks
from spg_pipe.predict.items import find_items


def rows(manifest):
    """Path → mask, defect, of all images."""
    columns = manifest.table[["path", "mask", "defect"]].itertuples(index=False)
    return {path: tuple(rest) for path, *rest in columns}


@pytest.mark.parametrize(
    ("image", "mask", "rule"),
    [
        ("dent/2.jpg", "mask/dent/2.png", "the folder mask/"),
        ("dent/2.png", "MASKS/dent/2_mask.png", "the folder MASKS/ and the suffix _mask"),
        ("dent/2.png", "GroundTruth/dent/2.png", "the folder GroundTruth/"),
        ("dent/2.png", "gt/dent/2.png", "the folder gt/"),
        ("dent/2.png", "Label/dent/2.png", "the folder Label/"),
        ("dent/2.png", "annotations/2.png", "the folder annotations/"),
        ("dent/2.png", "defect_masks/dent/2.png", "the folder defect_masks/"),
        ("dent/2.png", "dent_masks/2.png", "the folder dent_masks/"),
        ("dent/images/2.png", "dent/masks/2.png", "the folder masks/"),
        ("dent/Data/Images/2.JPG", "dent/Data/Masks/2.png", "the folder Masks/"),
        ("dent/2.png", "masks/dent/2/000.png", "the folder masks/"),
        ("dent/2.jpg", "masks/dent/2.jpg.png", "the folder masks/"),
        ("Dent/2.PNG", "masks/dent/2.png", "the folder masks/"),
        ("dent/2.png", "dent/2_mask.png", "the suffix _mask"),
        ("dent/2.png", "dent/2_GT.png", "the suffix _GT"),
        ("dent/2.jpg", "dent/2_label.bmp", "the suffix _label"),
        ("dent/2.jpg", "dent/2-seg.png", "the suffix -seg"),
        ("dent/2.jpg", "dent/2.mask.png", "the suffix .mask"),
        ("dent/2.jpg", "dent/mask_2.png", "the prefix mask_"),
        ("dent/2.jpg", "dent/2.png", "the ending .png beside .jpg of the same name"),
        ("dent/2.png", "dent/2.bmp", "the ending .bmp beside .png of the same name"),
    ],
)
def test_a_mask_is_found_and_the_rule_is_told(tmp_path, image, mask, rule):
    root = photos(tmp_path / "rods", "good/1.png", image)
    put(root, mask)
    manifest = scanned("mine", "folder", root)
    given = mask.removesuffix("/000.png")
    assert rows(manifest) == {"good/1.png": ("", "good"), image: (given, image.split("/")[0])}
    assert manifest.notes == (f"rods: 1 mask by {rule}: {mask}",)
    judged = find_items([str(root)], tmp_path / "out")
    assert [item.name for item in judged.listed] == sorted(["good/1.png", image])
    assert judged.notes == (f"1 mask left out, by {rule}: {mask}",)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("label/3.png", "1 image named like masks by the folder label/, but not like a mask to"),
        ("dent/2_seg.png", "by the suffix _seg, but not like a mask to look at, taken for images"),
        ("dent/lonely_mask.png", "named like masks by the suffix _mask alone, but not like a"),
        ("dent/2.bmp", "2 images that differ in their endings alone, but not like a mask"),
    ],
)
def test_a_photograph_that_is_named_like_a_mask_is_an_image_with_a_note(tmp_path, name, note):
    root = photos(tmp_path / "rods", "good/1.png", "dent/2.png", name)
    judged = find_items([str(root)], tmp_path / "out")
    assert name in [item.name for item in judged.listed]
    assert note in "".join(judged.notes)
    assert note in "".join(scanned("mine", "folder", root).notes)


def test_a_mask_without_an_image_is_no_image(tmp_path):
    root = put(photos(tmp_path / "rods", "good/1.png", "dent/2.png"), "dent/9_mask.png")
    manifest = scanned("mine", "folder", root)
    assert list(rows(manifest)) == ["good/1.png", "dent/2.png"]
    assert "1 mask without a use, ignored: dent/9_mask.png" in manifest.notes


def test_where_no_folder_is_called_good_an_empty_mask_says_normal(tmp_path):
    root = photos(tmp_path / "steel", "train/1.png", "train/2.png", "test/3.png")
    put(root, "train/1_GT.png")
    Image.new("L", (7, 5), 9).save(root / "train/2_GT.png")
    manifest = scanned("mine", "folder", root)
    assert rows(manifest) == {
        "train/1.png": ("", "good"),
        "test/3.png": ("", ""),
        "train/2.png": ("train/2_GT.png", "defect"),
    }
    assert "1 image taken for normal, as their masks are empty and no folder" in manifest.notes[1]
    assert "1 image without a label: no folder is called good" in manifest.notes[2]
    assert len(manifest.notes) == 3


def test_of_images_of_one_name_the_mask_folder_may_say_whose_its_masks_are(tmp_path):
    names = ("good/2.png", "dent/2.png", "NG_images/2.png", "hole/3.png")
    root = put(photos(tmp_path / "rods", *names), "dent_masks/2.png", "NG_masks/2.png", "gt/3.png")
    assert {path: mask for path, (mask, _) in rows(scanned("mine", "folder", root)).items()} == {
        "good/2.png": "",
        "dent/2.png": "dent_masks/2.png",
        "NG_images/2.png": "NG_masks/2.png",
        "hole/3.png": "gt/3.png",
    }


def test_several_masks_of_an_image_are_an_error_whose_advice_works(tmp_path):
    root = photos(tmp_path / "rods", "good/1.png", "dent/2.png")
    put(photos(root, "dent/2_mask.png"), "dent/2_gt.png")
    with pytest.raises(SpgError, match=r"Several masks fit .*folder .*dent/masks/2\.") as error:
        scanned("mine", "folder", root)
    folder = root / "dent" / "masks" / "2"
    assert str(folder) in str(error.value)
    folder.mkdir(parents=True)
    for name in ("2_mask.png", "2_gt.png"):
        (root / "dent" / name).rename(folder / name)
    assert rows(scanned("mine", "folder", root))["dent/2.png"] == ("dent/masks/2", "dent")


def test_words_for_normal():
    yes = ("good", "OK", " Good", "Defect-free", "noDefect", "NODefect_images", "io", "nominal")
    no = ("not good", "nok", "NG", "ko", "images", "positive", "bad", "goodish", "")
    assert [name for name in (*yes, *no) if is_normal(name)] == [*yes]


def test_black_and_white_products_in_labels_are_images_with_a_note(tmp_path):
    root = put(photos(tmp_path / "rods", "good/1.png"), "labels/7.png", "labels/8.png")
    manifest = scanned("mine", "folder", root)
    assert {path: defect for path, (_, defect) in rows(manifest).items()} == {
        "good/1.png": "good",
        "labels/7.png": "labels",
        "labels/8.png": "labels",
    }
    assert "by the folder labels/, but no image elsewhere has their names" in "".join(
        manifest.notes
    )


def test_a_back_lit_photograph_is_no_mask(tmp_path):
    root = photos(tmp_path / "rods", "good/1.png", "good/2.jpg")
    rng = np.random.default_rng(1)
    pixels = np.where(np.arange(40) < 20, 5, 245)[:, None] + rng.integers(-4, 5, (40, 40))
    save(pixels.astype(np.uint8), root / "good/2.bmp")
    save(rng.integers(0, 255, (40, 40), dtype=np.uint8), root / "good/2.jpg")
    manifest = scanned("mine", "folder", root)
    assert {defect for _, defect in rows(manifest).values()} == {"good"}
    assert "2 images that differ in their endings alone" in "".join(manifest.notes)


def test_names_that_differ_in_case_are_no_twins_and_endings_are_told_by_exact_names(tmp_path):
    root = photos(tmp_path / "rods", "good/1.png", "dent/A.png", "dent/B.jpg", "dent/b.jpg")
    manifest = scanned("mine", "folder", put(root, "dent/a.png", "dent/b.png"))
    assert {path: mask for path, (mask, _) in rows(manifest).items()} == {
        "good/1.png": "",
        "dent/A.png": "",
        "dent/a.png": "",
        "dent/B.jpg": "",
        "dent/b.jpg": "dent/b.png",
    }


@pytest.mark.parametrize("mask", ["gt/{}.png", "dent/{}_seg.png", "dent/{}.png"])
def test_of_many_files_alike_a_few_are_looked_at(tmp_path, monkeypatch, mask):
    names = range(40)
    root = photos(tmp_path / "rods", "good/1.png", *(f"dent/{n}.bmp" for n in names))
    put(root, *(mask.format(n) for n in names))
    seen = []

    def look(file):
        seen.append(file)
        return looks.look(file)

    monkeypatch.setattr(masks, "look", look)
    monkeypatch.setattr(masks, "is_like_mask", lambda file: look(file)[0] is not looks.Look.PHOTO)
    manifest = scanned("mine", "folder", root)
    assert [bool(mask) for mask, _ in rows(manifest).values()] == [False] + [True] * 40
    assert len(seen) <= 33
