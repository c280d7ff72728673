"""Given masks without an anomalous pixel: as drawn, or after resizing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import SIZE, extracted, manifest_of, write_folder

from spg_pipe.images.preprocess import resize_mask
from spg_pipe.store.masks import mask_losses, mask_notes
from spg_pipe.store.reader import FeatureStore


def dot(*pixels: tuple[int, int]) -> np.ndarray:
    """A mask of single pixels, which nearest-neighbour resizing to 32×32 may leave out."""
    mask = np.zeros((40, 48), np.uint8)
    mask[tuple(np.array(pixels, int).reshape(-1, 2).T)] = 1
    return mask


def lost_dot() -> tuple[int, int]:
    """A pixel that no pixel of the resized mask is taken from."""
    pixels = np.ndindex(40, 48)
    return next(pixel for pixel in pixels if not resize_mask(dot(pixel), SIZE).any())


def test_masks_that_are_drawn_and_survive_leave_nothing_to_say(tiny_store: FeatureStore) -> None:
    losses = mask_losses(tiny_store)
    assert (len(losses.empty), len(losses.vanished), losses.regions) == (0, 0, 0)
    assert mask_notes(tiny_store) == []


def test_an_empty_mask_and_a_vanished_one_are_told_apart_counted_and_named(tmp_path: Path) -> None:
    lost = lost_dot()
    whole = dot(lost)
    whole[30:36, 30:40] = 1  # this region stays, the dot goes
    root = write_folder(tmp_path / "parts", ("bolt",), masked=6)
    for number, mask in enumerate([*[dot()] * 4, dot(lost), whole]):
        path = root / f"bolt/ground_truth/dent/{number:02d}_mask.png"
        Image.fromarray(mask * np.uint8(255)).save(path)
    store = extracted(manifest_of(root), tmp_path / "a.zarr")
    losses = mask_losses(store)  # after four good images
    found = (losses.empty.tolist(), losses.vanished.tolist(), losses.regions)
    assert found == ([4, 5, 6, 7], [8], 2)
    empty, vanished = mask_notes(store)
    assert empty.startswith("4 given masks without a single anomalous pixel")
    assert "of bolt/dent/00.png, bolt/dent/01.png, bolt/dent/02.png and 1 more." in empty
    assert vanished == (
        "2 regions of masks vanished in resizing to 32×32, and with them 1 whole mask: of "
        "bolt/dent/04.png, bolt/dent/05.png"
    )


def test_masks_that_cover_nearly_all_are_noted_as_perhaps_inverted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "parts", ("bolt",), masked=2)
    for path in sorted(root.rglob("*_mask.png"))[:1]:
        Image.fromarray(255 - dot((9, 9)) * np.uint8(255)).save(path)
    store = extracted(manifest_of(root), tmp_path / "a.zarr")
    (note,) = (note for note in mask_notes(store) if "covering" in note)
    assert note.startswith("1 given mask covering more than 90% of the image, as if black were")
    assert "of bolt/dent/00.png. If so, invert them" in note
