"""What prepare notes of files, in every layout: pages, orientations, masks stored with loss."""

from pathlib import Path

import numpy as np
import pytest
from layouts import scanned, write_mvtec
from pictures import exif_of, jpeg_with_exif
from PIL import Image

ORIENTATION = 0x0112


def part(root: Path, suffix: str = "png", mask_suffix: str = "png") -> tuple[Path, Path]:
    """A defect image and its mask in a mvtec tree beside a good one; both square."""
    images, masks = root / "p/test/dent", root / "p/ground_truth/dent"
    for folder in (images, masks, root / "p/test/good"):
        folder.mkdir(parents=True)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(pixels).save(root / "p/test/good/0.png")
    image, mask = images / f"0.{suffix}", masks / f"0_mask.{mask_suffix}"
    Image.fromarray(pixels).save(image)
    Image.fromarray(np.uint8(255) * (pixels > 200)).save(mask)
    return image, mask


def notes_of(root: Path, layout: str = "mvtec", **options: object) -> list[str]:
    where = {"mvtec": root, "folder": root / "p/test"}[layout]
    return [
        note for note in scanned("set", layout, where, **options).notes if "official" not in note
    ]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_masks_stored_with_loss_are_noted_by_content(tmp_path, suffix):
    _, mask = part(tmp_path, mask_suffix=suffix)
    (note,) = (note for note in notes_of(tmp_path) if "with loss" in note)
    assert note.startswith("1 mask stored with loss, as in JPEG, whose noise counts as defect")
    assert note.endswith(f": p/ground_truth/dent/{mask.name}")
    mask.rename(mask.with_suffix(".png"))  # the name says nothing
    assert any("with loss" in note for note in notes_of(tmp_path))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_orientation_that_the_layout_ignores_is_noted(tmp_path, orientation):
    image, _ = part(tmp_path, suffix="jpg")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    with Image.open(image) as stored:
        stored.copy().save(image, exif=exif)
    (note,) = (note for note in notes_of(tmp_path) if "orientation" in note)
    assert note.startswith("1 image with an EXIF orientation that is ignored here")
    assert note.endswith("p/test/dent/0.jpg")


def test_a_turned_image_with_an_upright_mask_is_noted_where_exif_is_honoured(tmp_path):
    image, mask = part(tmp_path, suffix="jpg")
    image.write_bytes(jpeg_with_exif(image.read_bytes(), exif_of(3, 1, b"\3\0")))
    mask.rename(image.with_name("0_mask.png"))
    (note,) = (note for note in notes_of(tmp_path, "folder") if "EXIF" in note)
    assert note.startswith("1 image turned by EXIF otherwise than the mask")
    turned = Image.Exif()
    turned[ORIENTATION] = 3
    with Image.open(image.with_name("0_mask.png")) as stored:
        stored.copy().save(image.with_name("0_mask.png"), exif=turned)
    assert not any("EXIF" in note for note in notes_of(tmp_path, "folder"))
    Image.new("L", (16, 16)).save(image)  # the mask alone is turned
    assert any("otherwise than the mask" in note for note in notes_of(tmp_path, "folder"))


def test_a_mask_turned_by_90_degrees_says_what_to_do_in_every_layout(tmp_path):
    image, _ = part(tmp_path, suffix="jpg")
    Image.new("L", (20, 16)).save(image)
    image.write_bytes(jpeg_with_exif(image.read_bytes(), exif_of(3, 1, b"\6\0")))
    Image.new("L", (16, 20)).save(tmp_path / "p/ground_truth/dent/0_mask.png")
    with pytest.raises(Exception, match="orientation is ignored here: save the image upright"):
        notes_of(tmp_path)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png", "webp"])
def test_pages_and_frames_that_are_not_looked_at_are_noted(tmp_path, suffix):
    frames = [Image.new("L", (16, 16), value) for value in (10, 100, 200)]
    frames[0].save(tmp_path / f"stack.{suffix}", save_all=True, append_images=frames[1:])
    Image.new("L", (16, 16)).save(tmp_path / "one.png")
    notes = scanned("set", "folder", tmp_path).notes
    (note,) = (note for note in notes if "further pages" in note)
    assert note.startswith("1 image with further pages or frames, of which only the first is")
    assert note.endswith(f": stack.{suffix} (3)")


def test_damaged_exif_data_are_noted(tmp_path):
    image, _ = part(tmp_path, suffix="jpg")
    image.write_bytes(jpeg_with_exif(image.read_bytes(), b"nonsense" * 9))
    (note,) = (note for note in notes_of(tmp_path) if "EXIF" in note)
    assert note == "1 image with EXIF data that cannot be read, taken as upright: p/test/dent/0.jpg"


def test_an_ordinary_set_has_no_notes(tmp_path):
    notes = scanned("m", "mvtec", write_mvtec(tmp_path)).notes
    assert not any("EXIF" in note or "stored" in note or "white" in note for note in notes)


def test_a_folder_of_masks_is_read_and_its_changes_are_seen(tmp_path):
    _, mask = part(tmp_path)
    folder = mask.with_name("0")
    folder.mkdir()
    mask.rename(folder / "000.png")
    with Image.open(folder / "000.png") as first:
        first.transpose(Image.Transpose.ROTATE_180).save(folder / "001.png")
    from spg_pipe.datasets import build
    from spg_pipe.datasets.layouts.listing import Entry

    entry = Entry("p/test/dent/0.png", "p", "dent", 1, "p/ground_truth/dent/0")
    row, seen = build._row(tmp_path, entry, False, True)
    assert len(str(row["mask_sha256"])) == 64
    assert [header.size for header in seen.masks] == [(16, 16)] * 2
    Image.new("L", (16, 16)).save(folder / "001.png")
    assert build._row(tmp_path, entry, False, True)[0]["mask_sha256"] != row["mask_sha256"]
