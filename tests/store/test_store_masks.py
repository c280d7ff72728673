"""Given masks without an anomalous pixel: as drawn, or after resizing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import SIZE, extracted, manifest_of, write_folder

from spg_pipe.store.masks import mask_losses, mask_notes
from spg_pipe.store.reader import FeatureStore


def store_with(tmp_path: Path, masks: dict[int, np.ndarray], masked: int = 3) -> FeatureStore:
    """A store of one category (4 good images, then defects) with some masks redrawn."""
    root = write_folder(tmp_path / "parts", ("bolt",), masked=masked)
    for number, mask in masks.items():
        path = root / f"bolt/ground_truth/dent/{number:02d}_mask.png"
        Image.fromarray(mask * np.uint8(255)).save(path)
    return extracted(manifest_of(root), tmp_path / "a.zarr")


def dot(*places: tuple[int, int]) -> np.ndarray:
    """A mask of single pixels, which nearest-neighbour resizing to 32×32 may leave out."""
    mask = np.zeros((40, 48), np.uint8)
    for place in places:
        mask[place] = 1
    return mask


def lost_dot() -> tuple[int, int]:
    """A pixel that no pixel of the resized mask is taken from."""
    from spg_pipe.datasets.images import resize_mask

    rows, columns = np.divmod(np.arange(40 * 48), 48)
    return next(
        (int(y), int(x))
        for y, x in zip(rows, columns, strict=True)
        if not resize_mask(dot((y, x)), SIZE).any()
    )


def test_masks_that_are_drawn_and_survive_leave_nothing_to_say(tiny_store: FeatureStore) -> None:
    losses = mask_losses(tiny_store)
    assert (len(losses.empty), len(losses.vanished), losses.regions) == (0, 0, 0)
    assert mask_notes(tiny_store) == []


def test_an_empty_mask_and_a_vanished_one_are_told_apart(tmp_path: Path) -> None:
    lost = lost_dot()
    whole = dot(lost)
    whole[30:36, 30:40] = 1  # this region stays, the dot goes
    losses = mask_losses(store_with(tmp_path, {0: dot(), 1: dot(lost), 2: whole}))
    assert losses.empty.tolist() == [4]
    assert losses.vanished.tolist() == [5]
    assert losses.regions == 2


def test_the_notes_count_and_name_up_to_three_images(tmp_path: Path) -> None:
    masks = {i: dot() for i in range(4)} | {4: dot(lost_dot())}
    empty, vanished = mask_notes(store_with(tmp_path, masks, masked=5))
    assert empty.startswith("4 given masks without a single anomalous pixel")
    assert "of bolt/dent/00.png, bolt/dent/01.png, bolt/dent/02.png and 1 more." in empty
    assert vanished == (
        "1 region of masks vanished in resizing to 32×32, and with them 1 whole mask: of "
        "bolt/dent/04.png"
    )
