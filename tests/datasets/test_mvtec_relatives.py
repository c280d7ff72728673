"""Folders like MVTec AD's: what people changed in them, and advice that leads to a layout."""

import re

import pytest
from layouts import photos, put, scanned

from spg_pipe.errors import SpgError

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
