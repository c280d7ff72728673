"""Folders of any names: every layout lists images, and says so of every file that is none."""

import io
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import scanned
from PIL import Image

from fuzz.harness import nothing_outside
from spg_pipe.errors import SpgError
from spg_pipe.predict.items import find_items

FOLDERS = ["good", "OK", "NG", "dent", "masks", "gt", "label", "train", "test", "images", ".x"]
FOLDERS += ["ground_truth", "__MACOSX", "\u00e9", "e\u0301"]
STEMS = ["0", "1", "1_mask", "mask_1", "\u00e9", "e\u0301_GT", "x.jpg", "-", "._0"]
NAMES = st.tuples(st.lists(st.sampled_from(FOLDERS), max_size=4), st.sampled_from(STEMS))
FILES = st.tuples(NAMES, st.sampled_from([".png", ".BMP", ".txt"]), st.integers(0, 2))


def encoded(kind: int) -> bytes:
    """A photograph, a mask or an empty mask."""
    photograph = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    pixels = [photograph, np.eye(5, 7, dtype=np.uint8), np.zeros((5, 7), np.uint8)][kind]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


CONTENT = [encoded(kind) for kind in range(3)]


@pytest.mark.parametrize("layout", ["mvtec", "folder", "visa"])
@given(files=st.lists(FILES, max_size=9), link=st.sampled_from(["", "dent/loop", "good/gone"]))
def test_a_file_is_an_image_a_mask_or_told_of(
    layout: str, files: list[tuple[tuple[list[str], str], str, int]], link: str
) -> None:
    with tempfile.TemporaryDirectory() as place, nothing_outside(Path(place)):
        root = Path(place, "cell")
        root.mkdir()
        for (folders, stem), suffix, kind in files:
            path = root.joinpath(*folders, stem + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT[kind])
        if link and (root / link).parent.is_dir():
            (root / link).symlink_to("." if "loop" in link else "nowhere")
        pictures = {p for p in root.rglob("*") if p.is_file() and p.suffix != ".txt"}
        with suppress(SpgError):  # a message; anything else fails the test
            manifest = scanned("mine", layout, root, split="all")
            paths = manifest.table["path"].tolist()
            masks = {root / mask for mask in manifest.table["mask"] if mask}
            listed = {root / path for path in paths} | masks
            assert len(paths) == len(set(paths))
            assert not {root / path for path in paths} & masks
            untold = [p for p in pictures if not {p, p.parent} & listed]
            assert manifest.notes or not untold
        with suppress(SpgError):
            judged = find_items([str(root)], Path(place, "out"))
            assert judged.notes or {item.path for item in judged.listed} == pictures
