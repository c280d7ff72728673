"""Folders like MVTec AD's: what people changed in them, and advice that leads to a layout."""

import re

import pytest
from layouts import photos, put, scanned

from spg_pipe.errors import SpgError

# Images, what they are (- is not read), and their masks; then how the notes begin.
CASES = {
    "BTAD": (
        """01/train/ok/0.bmp good
        01/test/ok/1.bmp good
        01/test/ko/2.bmp ko 01/ground_truth/ko/2.png""",
        ["01: 1 folder name taken for good, normal images: ok"],
    ),
    "MVTec LOCO AD": (
        """box/test/good/0.png good
        box/test/logical/0.png logical box/ground_truth/logical/0/000.png
        box/validation/good/1.png -""",
        ["box: 1 image in validation,"],
    ),
    "MVTec AD 2": (
        """can/train/good/0.png good
        can/test_public/good/2.png good
        can/test_public/bad/3.png bad can/test_public/ground_truth/bad/3_mask.png
        can/test_private/4.png -
        can/validation/good/1.png -""",
        ["can: 1 image in test_private,", "can: 1 image in validation,"],
    ),
    "MVTec 3D-AD": (
        """pie/test/good/rgb/0.png good
        pie/test/hole/rgb/1.png hole pie/test/hole/gt/1.png
        pie/test/hole/xyz/1.png -""",
        ["pie: 1 mask by the folder gt/: pie/test/hole/gt/1.png", "pie: 1 folder left out, coord"],
    ),
    "no masks": (
        """cell/test/good/1.png good
        cell/test/not_good/2.png not_good""",
        ["cell: 1 defect image without a mask, as all in this category: left out of pixel metrics"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_relatives_of_mvtec_ad_are_read_and_what_is_not_read_is_noted(tmp_path, case):
    lines = [line.split() for line in CASES[case][0].splitlines()]
    put(photos(tmp_path, *(line[0] for line in lines)), *(m for line in lines for m in line[2:]))
    manifest = scanned("mine", "mvtec", tmp_path, split="all")
    table = manifest.table
    rows = zip(table["path"], table["defect"], table["mask"], strict=True)
    expected = {p: [d, "".join(m).removesuffix("/000.png")] for p, d, *m in lines if d != "-"}
    assert {path: rest for path, *rest in rows} == expected
    assert ((table["defect"] == "good") == (table["label"] == 0)).all()
    for note, start in zip(manifest.notes, CASES[case][1], strict=True):
        assert note.startswith(start)


TREES = {
    "no masks": ["cell/train/good/0.png", "cell/test/good/1.png", "cell/test/not good/2.png"],
    "OK and NG": ["cell/train/OK/0.png", "cell/test/OK/1.png", "cell/test/NG/2.png"],
    "MVTec AD 2": ["can/test_public/good/0.png", "can/test_public/bad/1.png"],
    "one more folder": ["all/cell/test/good/0.png", "all/cell/test/bad/1.png"],
    "VisA": ["candle/Data/Images/Normal/0.JPG", "candle/Data/Images/Anomaly/1.JPG"],
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
    masks = scanned("cells", "folder", test).table["mask"].tolist()
    assert masks == ["", "ground_truth/dent/1_mask.png", ""]


def test_without_masks_some_folder_says_what_is_normal(tmp_path):
    photos(tmp_path, "cast/train/ok_front/0.png", "cast/test/ok_front/1.png", "cast/test/def/2.png")
    with pytest.raises(SpgError, match="none of the folders def, ok_front is called good, OK"):
        scanned("cast", "mvtec", tmp_path)
    (tmp_path / "cast/test/ok_front").rename(tmp_path / "cast/test/good")
    assert scanned("cast", "mvtec", tmp_path).table["defect"].tolist() == ["good", "def"]


def test_masks_of_normal_images_that_are_not_empty_are_told(tmp_path):
    root = photos(tmp_path / "set", "pen/train/good/1.png", "pen/test/good/2.png")
    photos(root, "pen/ground_truth/good/2_mask.png")
    (note,) = scanned("set", "mvtec", root).notes
    assert "1 mask of normal images but not empty, ignored: pen/ground_truth/good/2_mask" in note


def test_what_is_left_out_beside_the_categories_is_told(tmp_path):
    root = photos(tmp_path / "set", "pen/test/good/2.png", ".git/1.png", "@eaDir/pen/1.png")
    (root / "cap").symlink_to(tmp_path / "nowhere")
    notes = scanned("set", "mvtec", root).notes
    assert "2 paths left out, hidden or of a tool: .git, @eaDir" in notes
    assert "1 link left out, dangling: cap" in notes
