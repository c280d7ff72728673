"""The official layouts mvtec and visa: matching by name, splits, counts, notes, messages."""

import csv
from typing import get_args

import pytest
from layouts import put, scanned, write_mvtec, write_split_file, write_visa

from spg_pipe.datasets.layouts.catalogue import LAYOUTS
from spg_pipe.datasets.layouts.official import MVTEC_AD, VISA
from spg_pipe.errors import SpgError
from spg_pipe.recipe.data import Dataset


def split_rows(tree):
    with (tree / "split_csv/1cls.csv").open() as file:
        return list(csv.reader(file))[1:]


def masks_of(manifest):
    return dict(zip(manifest.table["path"], manifest.table["mask"], strict=True))


def test_masks_are_matched_by_name_when_their_order_differs(tmp_path):
    put(tmp_path / "rod/test/bent", "b.jpg", "a10.jpg", "a9.jpg")
    masks = tmp_path / "rod/ground_truth"
    put(masks / "bent", "b.png", "a10_mask.bmp", "a9_mask.png", "0_extra_mask.png")
    put(masks / "gone", "000_mask.png")
    manifest = scanned("m", "mvtec", tmp_path)
    assert masks_of(manifest) == {
        "rod/test/bent/a10.jpg": "rod/ground_truth/bent/a10_mask.bmp",
        "rod/test/bent/a9.jpg": "rod/ground_truth/bent/a9_mask.png",
        "rod/test/bent/b.jpg": "rod/ground_truth/bent/b.png",
    }
    assert manifest.notes == (
        "rod: 2 masks without an image, ignored: rod/ground_truth/bent/0_extra_mask.png, "
        "rod/ground_truth/gone/000_mask.png",
    )


def test_missing_masks_are_an_error_that_names_and_counts_them(tmp_path):
    tree = write_mvtec(tmp_path, ("rod",), defects=("bent",), per_defect=8)
    for i in range(7):
        (tree / f"rod/ground_truth/bent/{i:03d}_mask.png").unlink()
    with pytest.raises(
        SpgError,
        match=r"7 defect images .* without a mask: rod/test/bent/000\.png \(expected "
        r"rod/ground_truth/bent/000_mask\.png\), .*004_mask\.png\) and 2 more, but "
        r"1 mask in the category: rod/ground_truth/bent/007_mask\.png\. Masks are matched by name",
    ):
        scanned("m", "mvtec", tree)


def test_two_masks_or_two_images_of_one_name_are_ambiguous(tmp_path):
    tree = write_mvtec(tmp_path, ("rod",), defects=("bent",))
    extra = put(tree / "rod/ground_truth/bent", "000.png") / "000.png"
    with pytest.raises(SpgError, match=r"Several masks fit the image .*bent/000\.png"):
        scanned("m", "mvtec", tree)
    extra.unlink()
    put(tree, "rod/test/bent/000.jpg")
    with pytest.raises(SpgError, match=r"000\.jpg and .*000\.png share one name"):
        scanned("m", "mvtec", tree)


def test_the_train_split_is_normal_and_all_is_both(tmp_path):
    tree = write_mvtec(tmp_path, ("rod",), train=3, good=2)
    train = scanned("m", "mvtec", tree, split="train")
    assert train.table["path"].tolist() == [f"rod/train/good/{i:03d}.png" for i in range(3)]
    assert set(train.table["label"]) == {0}
    assert len(scanned("m", "mvtec", tree, split="all")) == 3 + 2 + 2


def test_other_files_and_folders_are_ignored_and_counted(tmp_path):
    tree = write_mvtec(tmp_path, ("rod", "plate"), defects=())
    (tree / "rod/test/good/.DS_Store").write_text("")
    (tree / "rod/test/good/notes.txt").write_text("")
    put(tree, "rod/test/stray.png")
    (tree / "scripts").mkdir()
    (tree / "gone").symlink_to("nowhere")
    (tree / "plate" / "test").rename(tree / "plate" / "held_back")
    assert scanned("m", "mvtec", tree).notes == (
        "plate: 2 images in held_back, not directly in a class of train/ or test/, ignored: "
        "plate/held_back/good/000.png, plate/held_back/good/001.png",
        "rod: 1 image in test, not directly in a class of train/ or test/, ignored: "
        "rod/test/stray.png",
        "rod: 2 files left out, not an image file: rod/test/good/.DS_Store, "
        "rod/test/good/notes.txt",
        "1 folder without train/ and test/, ignored: scripts",
        "1 link left out, dangling: gone",
        "no test images in: plate",
    )


def test_a_root_that_is_no_mvtec_layout_says_what_it_holds(tmp_path):
    tree = write_mvtec(tmp_path / "data", ("rod",))
    with pytest.raises(
        SpgError, match=r"rod is itself one category. Use the layout mvtec with the root .*data\."
    ):
        scanned("m", "mvtec", tree / "rod")
    with pytest.raises(
        SpgError,
        match=r"No category of .* folders data\. Use the layout folder with the root",
    ):
        scanned("m", "mvtec", tmp_path)


def test_official_counts_add_up_to_the_releases():
    for benchmark, total in ((MVTEC_AD, [3629, 467, 1258]), (VISA, [8659, 962, 1200])):
        assert [sum(n) for n in zip(*benchmark.categories.values(), strict=True)] == total
    assert (len(MVTEC_AD.categories), len(VISA.categories)) == (15, 12)


def test_an_mvtec_ad_subset_is_reported_with_its_licence_and_counts(tmp_path):
    manifest = scanned("mvtec", "mvtec", write_mvtec(tmp_path, ("bottle", "zipper")))
    assert manifest.licences == ("MVTec AD: CC BY-NC-SA 4.0 (non-commercial)",)
    assert manifest.notes[0].startswith("2 of 15 categories of MVTec AD are on disk; missing: ca")
    assert manifest.notes[1:] == (
        "bottle: 2 normal test images, official 20",
        "bottle: 2 anomalous test images, official 63",
        "zipper: 2 normal test images, official 32",
        "zipper: 2 anomalous test images, official 119",
    )


def test_counts_are_compared_for_the_chosen_split(tmp_path):
    numbers = {"train": 1, "good": 12, "defects": ("defective",), "per_defect": 30}
    tree = write_mvtec(tmp_path, ("toothbrush",), size=(8, 8), **numbers)
    assert not [note for note in scanned("mvtec", "mvtec", tree).notes if "official" in note]
    assert scanned("mvtec", "mvtec", tree, split="train").notes[-1] == (
        "toothbrush: 1 training images, official 60"
    )


def test_one_common_name_does_not_make_mvtec_ad(tmp_path):
    tree = write_mvtec(tmp_path / "own", ("tile", "plate"))
    own = scanned("own", "mvtec", tree)
    assert (own.licences, own.notes) == (("own: not stated",), ())
    said = scanned("mvtec-part", "mvtec", tree)
    assert said.licences[0].startswith("MVTec AD: ")
    assert "not among the categories of MVTec AD: plate" in said.notes


@pytest.mark.parametrize(
    ("layout", "name", "note"),
    [
        ("visa", "visa", "called visa, but none of the 12 VisA categories found"),
        ("mvtec", "mvtec", "called mvtec, but none of the 15 MVTec AD categories"),
        ("visa", "demo-visa", ""),
        ("mvtec", "demo-mvtec", ""),
        ("mvtec", "mtd", ""),
        ("mvtec", "visa", ""),
    ],
)
def test_other_images_are_noted_under_a_benchmarks_own_name_only(tmp_path, layout, name, note):
    write = {"visa": write_visa, "mvtec": write_mvtec}[layout]
    notes = scanned(name, layout, write(tmp_path, ("cup",))).notes
    assert len(notes) == bool(note)
    assert "".join(notes).startswith(note)


@pytest.mark.parametrize(
    ("file", "text", "licence"),
    [
        ("bottle/license.txt", "Copyright MVTec Software GmbH", "MVTec AD: CC BY-NC-SA 4.0"),
        ("README", "The MVTec AD dataset", "MVTec AD: CC BY-NC-SA 4.0"),
        ("rod/readme.txt", "The MVTec AD dataset", "inspection: not stated"),
        ("bottle/license.txt", "free", "inspection: as stated in bottle/license.txt"),
    ],
)
def test_a_text_of_the_dataset_that_names_mvtec_makes_it_mvtec_ad(tmp_path, file, text, licence):
    tree = write_mvtec(tmp_path / "inspection", ("bottle", "rod"))
    (tree / file).write_text(text)
    assert scanned("inspection", "mvtec", tree).licences[0].startswith(licence)


def test_a_linked_split_has_the_images_of_the_other(tmp_path):
    tree = write_mvtec(tmp_path, ("rod",), train=3, good=0, defects=())
    (tree / "rod/test").mkdir(exist_ok=True)
    (tree / "rod/test/good").symlink_to("../train/good")
    for split, images in (("train", 3), ("test", 3), ("all", 6)):
        assert len(scanned("m", "mvtec", tree, split=split)) == images


def test_a_licence_file_is_pointed_to(tmp_path):
    tree = write_mvtec(tmp_path, ("rod",))
    (tree / "rod" / "license.txt").write_text("do what you like")
    assert scanned("own", "mvtec", tree).licences == (
        "own: as stated in rod/license.txt of the dataset",
    )


def test_visa_takes_splits_and_masks_from_the_split_file(tmp_path):
    tree = write_visa(tmp_path, ("candle", "pcb1"), train=3, good=2, anomalous=2)
    test = scanned("visa", "visa", tree)
    assert test.table["path"].tolist()[:4] == [
        "candle/Data/Images/Normal/0003.JPG",
        "candle/Data/Images/Normal/0004.JPG",
        "candle/Data/Images/Anomaly/000.JPG",
        "candle/Data/Images/Anomaly/001.JPG",
    ]
    assert test.table["defect"].tolist()[:4] == ["good", "good", "anomaly", "anomaly"]
    assert test.table["mask"].iloc[3] == "candle/Data/Masks/Anomaly/001.png"
    assert test.licences == ("VisA: CC BY 4.0",)
    assert test.notes[0].startswith("2 of 12 categories of VisA are on disk; missing: capsules")
    assert "candle: 2 normal test images, official 100" in test.notes
    assert set(scanned("visa", "visa", tree, split="train").table["label"]) == {0}
    assert len(scanned("visa", "visa", tree, split="all")) == 14


def test_visa_masks_follow_the_file_and_a_missing_one_is_not_a_normal_image(tmp_path):
    tree = write_visa(tmp_path, ("cup",), train=0, good=1, anomalous=2)
    rows = split_rows(tree)
    write_split_file(tree, [rows[0], [*rows[1][:4], rows[2][4]], [*rows[2][:4], ""]])
    manifest = scanned("cups", "visa", tree)
    assert manifest.table["mask_state"].tolist() == [0, 1, 2]
    assert masks_of(manifest)["cup/Data/Images/Anomaly/000.JPG"] == rows[2][4]
    assert "1 defect image without a mask" in manifest.notes[0]
    write_split_file(tree, [*rows, rows[-1]])
    with pytest.raises(SpgError, match="1 image more than once"):
        scanned("cups", "visa", tree)


def test_what_the_visa_split_file_and_the_disk_do_not_share_is_noted(tmp_path):
    tree = write_visa(tmp_path, ("cup", "lid"))
    (tree / "lid").rename(tree / "other")
    put(tree, "cup/Data/Images/Normal/9999.png")
    (tree / "cup/Data/Images/Normal/Thumbs.db").write_text("")
    assert scanned("cups", "visa", tree).notes == (
        "named in split_csv/1cls.csv but not on disk: lid",
        "1 image not named in split_csv/1cls.csv, ignored: cup/Data/Images/Normal/9999.png",
        "1 file left out, not an image file: cup/Data/Images/Normal/Thumbs.db",
    )


def test_visa_images_and_masks_that_are_missing_are_named(tmp_path):
    tree = write_visa(tmp_path, ("candle",), anomalous=8)
    (tree / "candle/Data/Masks/Anomaly/003.png").unlink()
    with pytest.raises(SpgError, match=r"1 mask named in .*1cls\.csv not found .*Anomaly/003\.png"):
        scanned("visa", "visa", tree)
    for i in range(7):
        (tree / f"candle/Data/Images/Anomaly/{i:03d}.JPG").unlink()
    with pytest.raises(SpgError, match=r"7 images named .*000\.JPG, .* and 2 more\. The copy"):
        scanned("visa", "visa", tree)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("cup", "test", "odd", "cup/a.png", ""),
            "line 2: the label 'odd' is neither normal nor anomaly",
        ),
        (
            ("cup", "val", "normal", "cup/a.png", ""),
            "line 2: the split 'val' is neither train nor test",
        ),
        (("cup", "test", "normal", "", ""), "line 2: the image '' is empty or outside"),
        (("", "test", "normal", "cup/a.png", ""), "line 2: the object '' is empty"),
        (("cup", "test", "normal", "../a.png", ""), "a.png' is empty or outside the dataset's f"),
        (("cup", "test", "anomaly", "cup/a.png", "/m.png"), "the mask '/m.png' is outside"),
    ],
)
def test_a_malformed_line_of_the_split_file_is_named(tmp_path, row, message):
    write_split_file(tmp_path, [row])
    with pytest.raises(SpgError, match=message):
        scanned("cups", "visa", tmp_path)


def test_a_visa_root_without_its_split_file_or_categories_says_so(tmp_path):
    with pytest.raises(
        SpgError, match=r"needs .*1cls\.csv, which is not there.*layout folder with the root"
    ):
        scanned("visa", "visa", tmp_path)
    path = write_split_file(tmp_path, [("cup", "test", "normal", "cup/a.png", "")])
    with pytest.raises(SpgError, match=r"No category .* is in .*at least one of cup\. Check"):
        scanned("visa", "visa", tmp_path)
    path.write_text("object,split,label\ncup,test,normal\n")
    with pytest.raises(SpgError, match="has no column image, mask: expected the header"):
        scanned("visa", "visa", tmp_path)
    path.write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(SpgError, match="cannot be read as a CSV file"):
        scanned("visa", "visa", tmp_path)


def test_a_recipe_names_every_layout():
    assert get_args(Dataset.model_fields["layout"].annotation) == tuple(LAYOUTS)
