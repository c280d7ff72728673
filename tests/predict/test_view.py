"""How images are shown, and masks that say what is ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spg_pipe.decision.maps import resize_maps
from spg_pipe.errors import SpgError
from spg_pipe.predict.view import Fit, View, Viewing

SIDES = st.integers(1, 60)
FITS: tuple[Fit, ...] = ("squash", "letterbox", "crop")


def saved(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(path)
    return path


@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_an_image_without_a_mask_is_shown_as_ever(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    view, square = View((height, width)), rng.random((24, 24), np.float32)
    pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
    assert np.array_equal(view.framed(pixels), pixels)
    assert view.kept(24) is None
    assert np.array_equal(view.back(square), resize_maps(square[None], (height, width))[0])
    assert view.ignored_share == 0


@given(height=SIDES, width=SIDES, fit=st.sampled_from(FITS), seed=st.integers(0, 99))
def test_a_map_comes_back_to_where_it_was_seen(
    height: int, width: int, fit: Fit, seed: int
) -> None:
    """At the size of the frame itself: to the pixel."""
    rng = np.random.default_rng(seed)
    ignored = rng.random((height, width)) < 0.3
    ignored[height // 2, width // 2] = False
    view = View((height, width), fit, ignored)
    values = rng.random((height, width), np.float32)
    framed = view.framed(np.repeat(values[:, :, None], 3, axis=2))
    side = {"letterbox": max(height, width), "crop": min(height, width)}.get(fit)
    if side is None:
        return
    assert framed.shape == (side, side, 3)
    kept = view.kept(side)
    back = view.back(framed[:, :, 0])
    assert view.judged is not None or kept is None
    judged = np.ones((height, width), bool) if view.judged is None else view.judged
    assert not (judged & ignored).any()
    np.testing.assert_allclose(back[judged], values[judged], rtol=1e-6)
    assert (back[~judged] == 0).all()
    if kept is not None:
        assert set(np.unique(kept)) <= {0, 1}
        assert kept.sum() == judged.sum()
    assert view.ignored_share == pytest.approx(1 - judged.mean())


def test_pixels_count_by_their_share_and_none_gives_its_neighbour_anything() -> None:
    ignored = np.zeros((8, 8), bool)
    ignored[:, 3:] = True
    view = View((8, 8), "squash", ignored)
    kept = view.kept(4)
    assert kept is not None
    np.testing.assert_allclose(kept[0], [1, 128 / 255, 0, 0], atol=1 / 255)
    square = np.tile(np.array([0.25, 0.25, 1, 1], np.float32), (4, 1))
    back = view.back(square)
    np.testing.assert_allclose(back[:, :3], 0.25)
    assert (back[:, 3:] == 0).all()


def test_a_letterbox_pads_with_a_mirror_image_that_does_not_count() -> None:
    pixels = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    view = View((4, 8), "letterbox")
    framed = view.framed(pixels)
    assert np.array_equal(framed[2:6], pixels)
    assert np.array_equal(framed[:2], pixels[1::-1])
    assert np.array_equal(framed[6:], pixels[:1:-1])
    kept = view.kept(4)
    assert kept is not None
    assert kept[:, 0].tolist() == [0, 1, 1, 0]
    assert View((8, 8), "letterbox").kept(4) is None


@given(seed=st.integers(0, 99), fit=st.sampled_from(FITS), deep=st.booleans())
def test_a_blank_image_shows_nothing_of_what_is_ignored(seed: int, fit: Fit, deep: bool) -> None:
    rng = np.random.default_rng(seed)
    kind = np.uint16 if deep else np.uint8
    pixels = rng.integers(0, np.iinfo(kind).max, (9, 14, 3), kind)
    ignored = rng.random((9, 14)) < 0.4
    view = View((9, 14), fit, ignored, blank=True)
    other = np.where(ignored[:, :, None], kind(7), pixels)
    assert np.array_equal(view.framed(pixels), view.framed(other))
    shown = View((9, 14), fit, np.zeros((9, 14), bool)).framed(view.framed(pixels))
    if fit == "squash":
        assert np.array_equal(shown[~ignored], pixels[~ignored])
        assert (shown[ignored] == pixels[~ignored].mean(axis=0).round()).all()


def test_an_image_of_which_nothing_is_left_is_an_error() -> None:
    with pytest.raises(SpgError, match="nothing to judge"):
        View((8, 8), "squash", np.ones((8, 8), bool)).kept(4)
    sides = np.zeros((8, 20), bool)
    sides[:, 6:14] = True
    assert View((8, 20), "squash", sides).kept(4) is not None
    with pytest.raises(SpgError, match="nothing to judge"):
        View((8, 20), "crop", sides).kept(4)


def test_the_nearest_mask_of_a_folder_is_taken(tmp_path: Path) -> None:
    def share(name: str, group: str = "") -> float:
        return Viewing(ignore=tmp_path).of(name, group, (10, 10), exif=False).ignored_share

    def rows(count: int) -> np.ndarray:
        mask = np.zeros((10, 10), bool)
        mask[:count] = True
        return mask

    saved(tmp_path / "cam1" / "a" / "b.bmp", rows(1))
    saved(tmp_path / "cam1" / "a.png", rows(2))
    saved(tmp_path / "cam1.png", rows(3))
    assert share("cam1/a/b.png") == pytest.approx(0.1)
    assert share("cam1/a/c.png") == pytest.approx(0.2)
    assert share("cam1/c.jpg") == pytest.approx(0.3)
    assert share("/data/line/c.jpg", group="cam1") == pytest.approx(0.3)
    with pytest.raises(SpgError, match=r"no mask of cam2/c\.jpg in .*cam2/c, cam2, default"):
        share("cam2/c.jpg", group="cam2")
    saved(tmp_path / "default.png", rows(4))
    assert share("cam2/c.jpg") == pytest.approx(0.4)
    saved(tmp_path / "default.bmp", rows(5))
    with pytest.raises(SpgError, match=r"default\.bmp and .*default\.png are masks of the same"):
        share("cam2/c.jpg")


def test_a_mask_of_the_same_shape_serves_any_size_and_another_shape_is_an_error(
    tmp_path: Path,
) -> None:
    mask = np.zeros((30, 40), bool)
    mask[:15] = True
    viewing = Viewing(ignore=saved(tmp_path / "mask.png", mask))
    for shape in ((30, 40), (60, 80), (12, 16), (74, 100), (301, 400)):
        view = viewing.of("any.png", "", shape, exif=False)
        assert view.ignored is not None
        assert view.ignored.shape == shape
        assert view.ignored_share == pytest.approx(0.5, abs=0.02)
    with pytest.raises(SpgError, match=r"mask\.png has 40×30 pixels and any\.png has 30×40"):
        viewing.of("any.png", "", (40, 30), exif=False)


def test_masks_are_known_by_their_content_and_names(tmp_path: Path) -> None:
    assert Viewing().digest is None
    saved(tmp_path / "one" / "a.png", np.eye(5))
    saved(tmp_path / "two" / "a.png", np.eye(5))
    saved(tmp_path / "three" / "a.png", np.eye(6))
    saved(tmp_path / "four" / "b.png", np.eye(5))
    one, two, three, four = (
        Viewing(ignore=tmp_path / name).digest for name in ("one", "two", "three", "four")
    )
    assert one == two
    assert len({one, three, four}) == 3
    with pytest.raises(SpgError, match="does not exist"):
        _ = Viewing(ignore=tmp_path / "gone").digest


def test_a_mask_that_is_drawn_anew_is_read_anew(tmp_path: Path) -> None:
    path = saved(tmp_path / "mask.png", np.zeros((5, 5)))
    viewing = Viewing(ignore=path)
    assert viewing.of("a.png", "", (5, 5), exif=False).ignored_share == 0
    saved(path, np.eye(5))
    assert viewing.of("a.png", "", (5, 5), exif=False).ignored_share == pytest.approx(0.2)


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none yet")
    for asked in (lambda v: v.digest, lambda v: v.of("a.png", "", (4, 4), exif=True)):
        with pytest.raises(SpgError, match=r"--ignore .* holds no mask\. Expected are pictures"):
            asked(Viewing(ignore=tmp_path))


def test_a_letterbox_that_takes_far_more_memory_than_its_image_is_refused() -> None:
    View((16_000, 16_000), "letterbox"), View((11_000, 1), "letterbox"), View((1, 20_000))
    message = "Letterboxed, scan.png of 20000×1 pixels would be a square of 400 million"
    with pytest.raises(SpgError, match=message):
        View((1, 20_000), "letterbox", name="scan.png")
