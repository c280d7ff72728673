"""Synthetic sets: what is painted, what is recorded, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from layouts import painted, scanned, synthesised, texture, write_mvtec, write_visa
from PIL import Image
from tiny import files

from spg_pipe.datasets.layouts.synthetic import RECORD, read_synthetic
from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.datasets.paint.pasted import (
    LEAST_AREA,
    PAINTERS,
    VISIBLE,
    canvas_of,
    paint,
    perlin,
)
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.recipe.data import KINDS, SyntheticSet
from spg_pipe.recipe.params import validated

every_kind = pytest.mark.parametrize("kind", KINDS)


def images(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two images (H, W, 3) to paint on and to take from."""
    rng = np.random.default_rng(5)
    first, second = texture((96, 128), rng), painted(texture((80, 72), rng), rng)[0]
    if kind == "grey":
        return np.repeat(first[..., :1], 3, 2), second
    if kind == "12 bits in 16":
        return np.repeat(first[..., :1].astype(np.uint16) * 16, 3, 2), second
    return first, second


@every_kind
@pytest.mark.parametrize("what", ["colour", "grey", "12 bits in 16"])
def test_the_mask_is_where_pixels_changed_and_nowhere_else(kind: str, what: str) -> None:
    first, second = images(what)
    image = canvas_of(first, canvas_of(second))
    for seed in range(12):
        after, mask = paint(image, kind, np.random.default_rng(seed))
        assert after.dtype == first.dtype
        np.testing.assert_array_equal(mask, (after != first).any(axis=2))
        change = np.abs(after.astype(float) - first).max(axis=2)[mask] / image.span
        assert change.mean() >= VISIBLE
        assert LEAST_AREA <= mask.mean() <= 0.11
        if what != "colour":
            assert canvas_of(after).grey


@every_kind
def test_sizes_range_from_a_few_pixels_to_a_tenth_of_the_image(kind: str) -> None:
    rng = np.random.default_rng(5)
    image = canvas_of(texture((96, 96), rng), canvas_of(texture((80, 72), rng)))
    draws = [paint(image, kind, np.random.default_rng(n))[1].mean() for n in range(60)]
    assert min(draws) < 0.003
    assert max(draws) > (0.005 if kind == "scar" else 0.05)


@every_kind
@pytest.mark.parametrize("level", [0, 127, 255])
def test_a_blank_image_gets_a_visible_defect_too(kind: str, level: int) -> None:
    blank = canvas_of(np.full((40, 40, 3), level, np.uint8))
    for seed in range(6):
        after, mask = paint(blank, kind, np.random.default_rng(seed))
        assert mask.any()
        np.testing.assert_array_equal(mask, (after != level).any(axis=2))


def test_perlin_noise_is_smooth_bounded_and_zero_on_its_lattice() -> None:
    plane = perlin((60, 80), (3, 4), np.random.default_rng(1))
    assert np.abs(plane).max() <= 1
    np.testing.assert_allclose(plane[::20, ::20], 0, atol=1e-12)
    assert np.abs(np.diff(plane, axis=0)).max() < 0.2 < plane.std() * 2
    # A lattice that does not divide the plane, and one finer than its pixels allow.
    assert np.isfinite(perlin((7, 9), (2, 9), np.random.default_rng(1))).all()


def source_of(root: Path, **options: int) -> Manifest:
    """Six normal and two anomalous images in two categories."""
    return scanned("parts", "mvtec", write_mvtec(root, good=3, **options))


def test_the_seed_alone_decides_the_bytes(tmp_path: Path) -> None:
    source = source_of(tmp_path / "parts")
    for name, seed, workers in (("a", 3, 1), ("b", 3, 4), ("c", 4, 4)):
        assert synthesised(source, tmp_path / name, seed=seed, workers=workers)
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    assert all((first[p] == other[p]) == ("/good/" in p) for p in first if p in other)
    assert first[RECORD] != other[RECORD]


def test_a_set_reads_back_with_labels_kinds_masks_and_what_it_is(tmp_path: Path) -> None:
    source = source_of(tmp_path / "parts")
    synthesised(source, tmp_path / "set", per_image=2, kinds=("scar", "perlin"))
    found = scanned("aux", "synthetic", tmp_path / "set", split="all")
    counts = found.table.groupby(["category", "defect", "label"]).size().to_dict()
    each = {("good", 0): 3, ("perlin", 1): 3, ("scar", 1): 3}
    assert counts == {(c, *kind): n for c in ("bottle", "screw") for kind, n in each.items()}
    for index, row in enumerate(found.table.itertuples()):
        state = MaskState.GIVEN if row.label else MaskState.EMPTY
        assert row.mask_state == state
        if row.label:
            mask = read_mask(found.root / row.mask, exif=False)
            normal = found.root / f"images/{row.category}/good" / (Path(row.path).stem[:5] + ".png")
            before = read_image(normal, exif=False)
            after = read_image(found.image_path(index), exif=False)
            np.testing.assert_array_equal(mask, (before != after).any(axis=2))
            assert mask.any()
    (note,) = found.notes
    assert note.startswith("synthetic defects (scar, perlin; seed 0) on 6 normal images")
    assert found.licences == (
        "aux: synthetic defects painted on normal images (parts: not stated)",
    )
    part = scanned("aux", "synthetic", tmp_path / "set", categories=["screw"])
    assert len(part) == 9


def test_normal_copies_have_the_pixels_that_the_source_is_read_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = texture((30, 40), rng)
    root = tmp_path / "mine"
    root.mkdir()
    Image.fromarray(np.dstack([colour, rng.integers(0, 255, (30, 40), np.uint8)])).save(
        root / "alpha.png"
    )
    Image.fromarray(colour[..., 0].astype(np.uint16) * 16).save(root / "deep.png")
    Image.fromarray(colour).quantize(16).save(root / "palette.gif")
    tag = Image.Exif()
    tag[274] = 6  # turned by 90 degrees
    Image.fromarray(colour).save(root / "turned.jpg", exif=tag)
    source = scanned("mine", "folder", root)
    synthesised(source, tmp_path / "set")
    images = read_synthetic(tmp_path / "set").images
    copies = {source: path for path, source in images.items() if "/good/" in path}
    assert set(copies) == {"alpha.png", "deep.png", "palette.gif", "turned.jpg"}
    for name, copy in copies.items():
        before = read_image(root / name, exif=True, white=source.white)
        after = read_image(tmp_path / "set" / copy, exif=False)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)
    # A manifest with its masks: sizes and all agree.
    assert len(scanned("aux", "synthetic", tmp_path / "set", skip_bad=True)) == 8


def test_the_normal_images_of_any_layout_are_the_source_and_kinds_take_turns(tmp_path):
    visa = scanned("visa", "visa", write_visa(tmp_path / "visa"), split="train")
    synthesised(visa, tmp_path / "a")
    assert len(scanned("aux", "synthetic", tmp_path / "a")) == 8
    source = source_of(tmp_path / "parts")
    assert set(source.table["label"]) == {0, 1}
    synthesised(source, tmp_path / "b")
    taken = read_synthetic(tmp_path / "b").source.images
    assert len(taken) == 6
    assert all("/test/good/" in path for path in taken)
    defects = scanned("aux", "synthetic", tmp_path / "b").table["defect"].value_counts()
    assert defects.to_dict() == {"good": 6, "perlin": 2, "cut_paste": 2, "scar": 2}
    assert set(KINDS) == set(PAINTERS)
    bad = scanned("parts", "mvtec", write_mvtec(tmp_path / "bad", good=0))
    with pytest.raises(SpgError, match="no normal images in its test split"):
        synthesised(bad, tmp_path / "set")


@pytest.mark.parametrize("fault", ["truncated", "tiny"])
def test_a_source_image_that_cannot_be_used_leaves_nothing_behind(fault, tmp_path):
    source = source_of(tmp_path / "parts")
    victim = tmp_path / "parts" / "screw" / "test" / "good" / "001.png"
    if fault == "truncated":
        victim.write_bytes(victim.read_bytes()[:-400])
    else:
        Image.new("RGB", (40, 15)).save(victim)
    with pytest.raises(SpgError, match=r"screw/test/good/001\.png"):
        synthesised(source, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["parts"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"seed": -1}, "seed.*greater than or equal to 0"),
        ({"per_image": 0}, "per_image.*greater than or equal to 1"),
        ({"kinds": ("dent",)}, "kinds.*'perlin', 'cut_paste' or 'scar'"),
        ({"kinds": ()}, "kinds: expected at least 1 value"),
        ({"kinds": ("scar", "scar")}, "each kind once"),
    ],
)
def test_settings_out_of_range_are_told(setting: dict, message: str) -> None:
    with pytest.raises(SpgError, match=message):
        validated(SyntheticSet, {"name": "set", "root": "a", "source": "b"} | setting, "--set")


@pytest.mark.parametrize("change", ["seed", "source", "changed file", "missing file"])
def test_another_or_damaged_set_is_replaced(change: str, tmp_path: Path) -> None:
    source = source_of(tmp_path / "parts")
    synthesised(source, tmp_path / "set", seed=1 if change == "seed" else 0)
    victim = tmp_path / "set" / "images" / "bottle" / "good" / "00001.png"
    if change == "source":
        Image.new("L", (64, 48), 9).save(tmp_path / "parts" / "bottle" / "test/good/000.png")
        source = scanned("parts", "mvtec", tmp_path / "parts")
    if change == "changed file":
        victim.write_bytes(b"no image")
    if change == "missing file":
        victim.unlink()
    assert synthesised(source, tmp_path / "set")
    synthesised(source, tmp_path / "fresh")
    assert files(tmp_path / "set") == files(tmp_path / "fresh")
    before = (tmp_path / "set" / RECORD).stat().st_mtime_ns
    assert not synthesised(source, tmp_path / "set")  # the same again is left alone
    assert (tmp_path / "set" / RECORD).stat().st_mtime_ns == before


def test_a_folder_of_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    source = source_of(tmp_path / "parts")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    synthesised(source, tmp_path / "set")
    (tmp_path / "set" / "images" / "mine.png").write_bytes(b"mine")
    for name in ("mine", "set", "mine/notes.txt"):
        before = files(tmp_path)
        with pytest.raises(SpgError, match="Name another folder"):
            synthesised(source, tmp_path / name, seed=1)
        assert files(tmp_path) == before
    with pytest.raises(SpgError, match="among the source's images"):
        synthesised(source, tmp_path / "parts" / "set")


@pytest.mark.parametrize("what", ["link to a folder", "link to a file", "empty folder"])
def test_links_and_empty_folders_do_not_vanish_with_a_set(what: str, tmp_path: Path) -> None:
    root, mine = a_set(tmp_path), tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    own = root / "images" / "own"
    if what == "empty folder":
        own.mkdir()
    else:
        own.symlink_to(mine if what == "link to a folder" else mine / "notes.txt")
    source = scanned("parts", "mvtec", tmp_path / "parts")
    with pytest.raises(SpgError, match=r"holds what is not of the synthetic set: images/own\."):
        synthesised(source, root, seed=1)
    assert own.is_symlink() or own.is_dir()


def test_a_link_to_the_sets_folder_stays_a_link(tmp_path: Path) -> None:
    root, link, inside = a_set(tmp_path), tmp_path / "link", tmp_path / "inside"
    link.symlink_to(root)
    inside.symlink_to(tmp_path / "parts")
    source = scanned("parts", "mvtec", tmp_path / "parts")
    assert synthesised(source, link, seed=1)
    assert link.is_symlink()
    assert read_synthetic(root).settings.seed == 1
    with pytest.raises(SpgError, match="among the source's images"):
        synthesised(source, inside / "set")


def a_set(tmp_path: Path) -> Path:
    synthesised(source_of(tmp_path / "parts"), tmp_path / "set")
    return tmp_path / "set"
