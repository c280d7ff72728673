"""The folder layout: a person's own images with as much labelling as there is."""

import time

import numpy as np
import pytest
from layouts import put, scanned
from PIL import Image

from spg_pipe.datasets.layouts.folder import _categories
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_image, read_mask


def rows(manifest):
    table = manifest.table
    columns = ("path", "mask", "mask_state", "category", "defect", "label")
    return list(zip(*(table[c].tolist() for c in columns), strict=True))


def test_plain_images_at_any_depth_have_no_label(tmp_path):
    root = put(tmp_path / "shots", "b.png", "a.jpg", "may/01/c.png")
    manifest = scanned("mine", "folder", root)
    assert rows(manifest) == [
        (path, "", 2, "shots", "", 255) for path in ("a.jpg", "b.png", "may/01/c.png")
    ]
    assert manifest.notes == (
        "shots: 3 images without a label: no folder is called good, OK, normal or the like "
        "(there are: may)",
    )
    assert manifest.licences == ("mine: not stated",)


def test_good_and_defect_folders_with_optional_masks(tmp_path):
    root = put(
        tmp_path / "rods",
        "good/1.png",
        "good/more/2.png",
        "bent/3.png",
        "bent/4.png",
        "bent/deep/5.png",
        "torn/6.png",
        "ground_truth/bent/3_mask.png",
        "ground_truth/bent/deep/5.png",
        "masks/torn/6.bmp",
        "loose.png",
    )
    manifest = scanned("mine", "folder", root)
    assert rows(manifest) == [
        ("good/1.png", "", 0, "rods", "good", 0),
        ("good/more/2.png", "", 0, "rods", "good", 0),
        ("loose.png", "", 2, "rods", "", 255),
        ("bent/3.png", "ground_truth/bent/3_mask.png", 1, "rods", "bent", 1),
        ("bent/4.png", "", 2, "rods", "bent", 1),
        ("bent/deep/5.png", "ground_truth/bent/deep/5.png", 1, "rods", "bent", 1),
        ("torn/6.png", "masks/torn/6.bmp", 1, "rods", "torn", 1),
    ]
    assert manifest.notes == (
        "rods: 1 mask by the folder ground_truth/ and the suffix _mask: "
        "ground_truth/bent/3_mask.png",
        "rods: 1 mask by the folder ground_truth/: ground_truth/bent/deep/5.png",
        "rods: 1 mask by the folder masks/: masks/torn/6.bmp",
        "rods: 1 defect image without a mask, left out of pixel metrics: bent/4.png",
        "rods: 1 image without a label",
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # masks alone label where no folder says good; an empty one says normal
        (
            ("bent/1.jpg", "bent/1_mask.bmp", "torn/2.jpg", "torn/3.jpg", "torn/3_mask.png"),
            [
                ("torn/3.jpg", "", 0, "good", 0),
                ("torn/2.jpg", "", 2, "", 255),
                ("bent/1.jpg", "bent/1_mask.bmp", 1, "bent", 1),
            ],
        ),
        # an image in the root with a mask is a defect
        (
            ("1.jpg", "1_mask.bmp", "2.jpg"),
            [("2.jpg", "", 2, "", 255), ("1.jpg", "1_mask.bmp", 1, "defect", 1)],
        ),
        # a defect folder alone is no label without good or masks
        (("bent/1.jpg",), [("bent/1.jpg", "", 2, "", 255)]),
        (
            ("bent/1.jpg", "good/0.jpg"),
            [("good/0.jpg", "", 0, "good", 0), ("bent/1.jpg", "", 2, "bent", 1)],
        ),
        # in any words that people use
        (("OK/1.png", "ko/2.png"), [("OK/1.png", "", 0, "good", 0), ("ko/2.png", "", 2, "ko", 1)]),
        (("ok/1.png", "Good/0.png"), [(f"{n}.png", "", 0, "good", 0) for n in ("Good/0", "ok/1")]),
    ],
)
def test_a_class_is_what_something_says_is_one(tmp_path, names, expected):
    root = put(tmp_path / "rods", *names)
    for mask in root.rglob("*.bmp"):
        Image.new("L", (7, 5), 255).save(mask)
    manifest = scanned("mine", "folder", root)
    assert [(*row[:3], *row[4:]) for row in rows(manifest)] == expected
    assert {row[3] for row in rows(manifest)} == {"rods"}


def test_masks_of_good_images_and_unused_masks_are_noted(tmp_path):
    names = ("good/1.png", "good/1_mask.png", "bent/2.png", "ground_truth/bent/9_mask.png")
    root = put(tmp_path / "rods", *names, "torn/3.png", "masks/torn/3.jpg")
    (root / "bent" / "read.me").write_text("")
    manifest = scanned("mine", "folder", root)
    assert manifest.table["mask"].tolist() == ["", "", "masks/torn/3.jpg"]
    assert manifest.notes[1:4] == (
        "rods: 1 defect image without a mask, left out of pixel metrics: bent/2.png",
        "2 masks without a use, ignored: good/1_mask.png, ground_truth/bent/9_mask.png",
        "1 file left out, not an image file: bent/read.me",
    )
    assert "1 mask stored with loss, as in JPEG" in manifest.notes[4]


def test_subfolders_that_each_hold_good_are_categories(tmp_path):
    root = put(tmp_path, "rod/good/1.png", "rod/bent/2.png", "nut/good/3.png")
    manifest = scanned("mine", "folder", root)
    assert manifest.table["path"].tolist() == ["nut/good/3.png", "rod/good/1.png", "rod/bent/2.png"]
    assert manifest.table["category"].tolist() == ["nut", "rod", "rod"]
    assert len(scanned("mine", "folder", root, categories=["nut"])) == 1
    put(root, "bent/2.png")
    with pytest.raises(
        SpgError, match=r"ambiguous: a folder good/ in nut makes.*1 image in none: bent/2"
    ):
        scanned("mine", "folder", root)


def test_images_of_one_name_are_fine_until_a_mask_could_belong_to_both(tmp_path):
    root = put(tmp_path / "rods", "good/0.png", "bent/1.png", "bent/1.jpg")
    assert len(scanned("mine", "folder", root)) == 3
    put(root, "masks/bent/1.png")
    with pytest.raises(SpgError, match="share one name"):
        scanned("mine", "folder", root)


@pytest.fixture
def turned():
    """A tag that turns an image by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_exif_is_honoured_for_image_and_mask_alike_unless_the_protocol_says_so(tmp_path, turned):
    pixels = np.zeros((5, 7), np.uint8)
    pixels[0, 0] = 255
    upright = np.rot90(pixels, -1)
    put(tmp_path, "bent/both_mask.png")
    for name in ("turned", "both", "both_mask"):
        Image.fromarray(pixels).save(tmp_path / f"bent/{name}.png", exif=turned)
    unturned = scanned("mine", "folder", tmp_path, exif_of_own_images=False)
    assert not unturned.exif
    assert unturned.table[["height", "width"]].to_numpy().tolist() == [[5, 7]] * 2
    Image.fromarray(upright).save(tmp_path / "bent/turned_mask.png")  # drawn on what one sees
    manifest = scanned("mine", "folder", tmp_path)
    assert manifest.table[["height", "width"]].to_numpy().tolist() == [[7, 5]] * 2
    for index in range(2):
        image = read_image(manifest.image_path(index), exif=manifest.exif)
        mask = read_mask(manifest.mask_path(index), exif=manifest.exif)
        assert np.array_equal(image[:, :, 0] > 0, mask > 0)
        assert np.array_equal(mask, upright > 0)


def test_a_mask_drawn_on_the_unturned_image_is_an_error_that_explains(tmp_path, turned):
    put(tmp_path, "good/0.png", "bent/1_mask.png")
    Image.new("L", (7, 5)).save(tmp_path / "bent/1.jpg", exif=turned)
    with pytest.raises(SpgError, match=r"is 5×7 pixels, but its mask .* is 7×5; the image's EXIF"):
        scanned("mine", "folder", tmp_path)


@pytest.mark.parametrize("name", ["normal", "OK", "Defect-free", " good", "GOOD", "good_"])
def test_normal_images_are_known_by_other_words_which_are_told(tmp_path, name):
    put(tmp_path, f"rod/{name}/1.png", "rod/bent/2.png", "nut/good/2.png")
    for root in (tmp_path / "rod", tmp_path):
        manifest = scanned("mine", "folder", root, categories=["rod"])
        assert manifest.table["defect"].tolist() == ["good", "bent"]
        assert f"rod: 1 folder name taken for good, normal images: {name}" in manifest.notes


def test_other_layouts_are_recognised(tmp_path):
    put(tmp_path / "data", "rod/train/good/1.png", "rod/test/good/2.png")
    for root in ("data", "data/rod"):
        with pytest.raises(SpgError, match=r"Use the layout mvtec with the root .*data \("):
            scanned("mine", "folder", tmp_path / root)
    put(tmp_path / "v", "split_csv/1cls.csv/x.png")
    with pytest.raises(SpgError, match="Use the layout visa"):
        scanned("mine", "folder", tmp_path / "v")


def test_no_images_and_no_training_split_are_errors(tmp_path):
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(SpgError, match=r"No images in .*expected image files"):
        scanned("mine", "folder", tmp_path)
    with pytest.raises(SpgError, match="knows no training split: use the split `test` or `all`"):
        scanned("mine", "folder", put(tmp_path, "1.png"), split="train")


def test_thousands_of_subfolders_are_no_load(tmp_path):
    places = {
        tmp_path / f"{n}{kind}": (f"part {n}", kind)
        for n in range(8000)
        for kind in ("good", "dent")
        if (n, kind) != (0, "good")
    }
    start = time.thread_time()
    assert len(_categories(tmp_path, places)) == 8000
    assert time.thread_time() - start < 2
