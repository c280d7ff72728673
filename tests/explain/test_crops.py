"""Crops of patches: which part of the photograph, the mask's outline, and what is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spg_pipe.explain import crops
from spg_pipe.explain.crops import CONTEXT, PATCH, SIDE, Photographs, Place, crop, write_strips
from spg_pipe.store.reader import FeatureStore

GRID = (10, 20)


def ramp(height: int = 100, width: int = 200) -> np.ndarray:
    """Red is the row and green the column."""
    rows, columns = np.indices((height, width), np.uint8)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2)


@pytest.mark.parametrize(("row", "column"), [(5, 10), (3, 4), (6, 17)])
def test_the_patch_is_in_the_middle(row: int, column: int) -> None:
    found = crop(ramp(), None, Place(0, 0, row * 20 + column, GRID))
    assert found.shape == (SIDE, SIDE, 3)
    middle = found[SIDE // 2 - 2 : SIDE // 2 + 2, SIDE // 2 - 2 : SIDE // 2 + 2].mean(axis=(0, 1))
    np.testing.assert_allclose(middle[:2], [row * 10 + 4.5, column * 10 + 4.5], atol=1)
    assert float(np.ptp(found[0, :, 1])) == pytest.approx(CONTEXT * 10, abs=3)
    square = (found == PATCH).all(axis=2)
    assert np.ptp(np.argwhere(square), axis=0) - 1 == pytest.approx(SIDE / CONTEXT, abs=1)
    assert np.argwhere(square).mean(axis=0) == pytest.approx((SIDE - 1) / 2, abs=1)


def test_at_a_border_the_crop_stays_in_the_image() -> None:
    found = crop(ramp(), None, Place(0, 0, 199, GRID))
    square = np.argwhere((found == PATCH).all(axis=2))
    assert square.min(axis=0) == pytest.approx(SIDE - SIDE / CONTEXT, abs=2)
    assert found[-1, -1, 0] == pytest.approx(99, abs=1)
    assert found[-1, -1, 1] == pytest.approx(199, abs=1)
    assert crop(ramp(8, 200), None, Place(0, 0, 0, GRID)).shape == (SIDE, SIDE, 3)


def test_the_mask_is_outlined_where_it_lies() -> None:
    mask = np.zeros((50, 50), np.uint8)
    mask[25:30, 25:28] = 1  # rows 50 to 60, columns 100 to 112 of the image
    grey = np.full((100, 200, 3), 128, np.uint8)
    found = crop(grey, mask, Place(0, 0, 5 * 20 + 10, GRID))
    assert (found[SIDE // 2, SIDE // 2] == 128).all()
    assert (found == 255).all(axis=2).any()
    elsewhere = crop(grey, mask, Place(0, 0, 0, GRID))
    assert not (elsewhere == 255).all(axis=2).any()
    assert (elsewhere == PATCH).all(axis=2).any()


def test_every_photograph_is_decoded_once_and_crops_stand_in_order(
    tiny_store: FeatureStore, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = [], crops.read_image

    def counted(path: Path, **options: object) -> np.ndarray:
        read.append(path)
        return whole(path, **options)

    monkeypatch.setattr(crops, "read_image", counted)
    places = [Place(0, image, patch, (4, 4)) for image in (3, 1) for patch in (0, 9)]
    strips = {"a": places, "b": places[::-1], "c": places[:1]}
    written = write_strips(strips, [Photographs(tiny_store, tiny_images)], tmp_path)
    assert written == set(strips)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(read) == len(set(read)) == 2
    strip = np.asarray(Image.open(tmp_path / "a.jpg")).astype(float)
    photograph, mask = Photographs(tiny_store, tiny_images).read(3) or (None, None)
    assert photograph is not None
    expected = crop(photograph, mask, places[1])
    second = strip[:, SIDE + 4 : 2 * SIDE + 4]
    assert np.abs(second - expected).mean() < 12  # JPEG


def test_what_is_gone_has_no_strip(
    tiny_store: FeatureStore, tiny_images: Path, tmp_path: Path
) -> None:
    gone = Photographs(tiny_store, tmp_path / "nowhere")
    there = Photographs(tiny_store, tiny_images)
    strips = {
        "both": [Place(0, 0, 0, (4, 4)), Place(1, 0, 0, (4, 4))],
        "none": [Place(1, 1, 0, (4, 4))],
    }
    assert write_strips(strips, [there, gone], tmp_path) == {"both"}
    assert Image.open(tmp_path / "both.jpg").size == (SIDE, SIDE)
