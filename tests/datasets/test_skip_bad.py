"""Images that cannot be used are left out on record, and only when that was asked for."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import scanned, write_mvtec
from PIL import Image

from spg_pipe.datasets import build as build_module
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError

GOOD = "bottle/test/good/001.png"
CRACK, CRACK_MASK = "bottle/test/crack/000.png", "bottle/ground_truth/crack/000_mask.png"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Eight images: four of each category, half of them defects."""
    return write_mvtec(tmp_path / "data")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def no_image(path: Path) -> None:
    path.write_bytes(b"broken")


def other_size(path: Path) -> None:
    Image.new("L", (10, 20)).save(path)


def unclear_range(path: Path) -> None:
    Image.fromarray(np.full((48, 64), 3.5, np.float32)).save(path, "TIFF")


@pytest.mark.parametrize(
    ("path", "damage", "image", "reason"),
    [
        (GOOD, truncate, GOOD, r"cannot be read \(.*(truncated|incomplete)"),
        (GOOD, no_image, GOOD, r"cannot be read \(not an image of a known format\)$"),
        (GOOD, unclear_range, GOOD, r"^has float32 values from 3\.5 to 3\.5, of unknown scale"),
        (CRACK_MASK, truncate, CRACK, rf"has a mask, {CRACK_MASK}, that cannot be read \("),
        (CRACK_MASK, other_size, CRACK, rf"is 64×48 pixels, but its mask {CRACK_MASK} is 10×20$"),
    ],
)
def test_a_bad_image_is_left_out_with_its_path_and_reason(
    tree: Path, tmp_path: Path, path: str, damage: Callable[[Path], None], image: str, reason: str
) -> None:
    damage(tree / path)
    manifest = scanned("m", "mvtec", tree, skip_bad=True)
    assert len(manifest) == 7
    assert image not in set(manifest.table["path"])
    (bad,) = manifest.skipped
    assert bad.path == image
    assert re.search(reason, bad.reason)
    assert manifest.notes[-1] == f"1 image left out (skip_bad): {image} {bad.reason}"
    manifest.save(tmp_path / "m.parquet")
    assert str(tree).encode() not in (tmp_path / "m.parquet").read_bytes()
    assert Manifest.load(tmp_path / "m.parquet", tree).skipped == (bad,)


def test_without_the_option_a_bad_image_stops_the_scan_by_its_name(tree: Path) -> None:
    other_size(tree / CRACK_MASK)
    with pytest.raises(SpgError, match=rf"{CRACK} is 64×48 .*\n.*leave them out with --skip-bad"):
        scanned("m", "mvtec", tree)


def test_pixels_are_decoded_with_the_option_only(tree, monkeypatch):
    seen: list[str] = []
    for name in ("read_image", "read_mask"):
        monkeypatch.setattr(build_module, name, lambda path, **_: seen.append(path.name))
    scanned("m", "mvtec", tree)
    assert seen == []
    scanned("m", "mvtec", tree, skip_bad=True)
    assert len(seen) == 8 + 4  # images and masks


def test_what_is_left_out_does_not_change_the_rest(tree: Path) -> None:
    whole = scanned("m", "mvtec", tree)
    assert scanned("m", "mvtec", tree, skip_bad=True).fingerprint() == whole.fingerprint()
    truncate(tree / GOOD)
    skipping = scanned("m", "mvtec", tree, skip_bad=True)
    assert skipping.fingerprint() == whole.without([GOOD]).fingerprint() != whole.fingerprint()
    (tree / GOOD).unlink()
    assert scanned("m", "mvtec", tree).fingerprint() == skipping.fingerprint()


def test_a_dataset_of_bad_images_alone_is_an_error(tree: Path) -> None:
    *others, last = sorted(tree.rglob("test/*/*.png"))
    for image in others:
        no_image(image)
    manifest = scanned("m", "mvtec", tree, skip_bad=True)
    assert re.fullmatch(r"7 images left out .skip_bad.: bottle.*; and 2 more", manifest.notes[-1])
    assert len(manifest.skipped) == 7
    no_image(last)
    with pytest.raises(SpgError, match=r"(?s)8 images of 8 .*and 3 more.*no image is left"):
        scanned("m", "mvtec", tree, skip_bad=True)


def test_known_bad_images_are_left_out_until_their_files_change(tree: Path) -> None:
    saved = shutil.copy(tree / GOOD, tree / "saved")
    truncate(tree / GOOD)
    bad = scanned("m", "mvtec", tree, skip_bad=True).skipped
    assert GOOD not in set(scanned("m", "mvtec", tree, leave_out=bad).table["path"])
    shutil.copy(saved, tree / GOOD)
    repaired = scanned("m", "mvtec", tree, leave_out=bad)
    assert (len(repaired), repaired.skipped) == (8, ())
    no_image(tree / GOOD)
    with pytest.raises(SpgError, match=GOOD):
        scanned("m", "mvtec", tree, leave_out=bad)


def test_a_bad_image_that_cannot_be_read_now_is_not_taken_for_the_same(tree, monkeypatch):
    no_image(tree / GOOD)
    (bad,) = scanned("m", "mvtec", tree, skip_bad=True).skipped
    assert bad.unchanged(tree)

    def no_permission(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", no_permission)
    with pytest.raises(SpgError, match=r"001\.png cannot be opened \(Permission denied\)"):
        bad.unchanged(tree)
