"""The built-in demo sets: deterministic, exact, readable, and not a matter of vivid paint."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from layouts import scanned
from PIL import Image
from tiny import files

from benchmarks.demo_contrast import WIDTHS, contrast_auroc
from spg_pipe.datasets.manifest import MaskState
from spg_pipe.datasets.paint import demo as demo_module
from spg_pipe.datasets.paint import photographs
from spg_pipe.datasets.paint.catalogue import DEMO_SETS, DemoSet
from spg_pipe.datasets.paint.demo import RECORD, Sample, samples, write_demo
from spg_pipe.datasets.paint.drawn import DRAWINGS, paint
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.recipe.data import DemoSet as RecipeDemoSet
from spg_pipe.recipe.params import validated

NAMES = sorted(DEMO_SETS)


def small(name: str, count: int = 1) -> DemoSet:
    """The first categories, every painter once: quick to write."""
    demo = DEMO_SETS[name]
    categories = dict(islice(demo.categories.items(), count))
    return replace(demo, categories=categories, train=1, normal=2, anomalous=len(demo.painters))


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> dict[str, DemoSet]:
    sets = {name: small(name) for name in NAMES}
    monkeypatch.setattr(demo_module, "DEMO_SETS", sets)
    return sets


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_bytes_and_another_seed_other_images(name, small_sets, tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_demo(name, tmp_path / folder, seed=seed)
    first, again, other = (files(tmp_path / folder) for folder in "abc")
    assert first == again
    assert first.keys() == other.keys()
    images = [path for path in first if path.lower().endswith((".png", ".jpg"))]
    assert all(first[path] != other[path] for path in images)


@pytest.mark.parametrize("name", NAMES)
def test_layout_reads_back_with_every_mask(name, tmp_path, monkeypatch):
    demo = small(name, 2)
    monkeypatch.setattr(demo_module, "DEMO_SETS", {name: demo})
    write_demo(name, tmp_path / "set")
    test = scanned(name, demo.layout, tmp_path / "set", split="test")
    train = scanned(name, demo.layout, tmp_path / "set", split="train")
    assert test.notes == ()
    assert "LICENSE.txt" in test.licences[0]
    record = json.loads((tmp_path / "set" / RECORD).read_text())
    assert (record["name"], record["version"], record["seed"]) == (name, 1, 0)
    assert "CC0" in record["licence"]
    assert len(train) == demo.train * len(demo.categories)
    assert set(train.table["label"]) == {0}
    counts = test.table.groupby("category")["label"].agg(["size", "sum"])
    assert list(counts.index) == sorted(demo.categories)
    assert set(counts["size"]) == {demo.normal + demo.anomalous}
    assert set(counts["sum"]) == {demo.anomalous}
    for row in test.table.itertuples():
        assert row.height == row.width == demo.image_size
        if row.label == 1:
            assert row.mask_state == MaskState.GIVEN
            mask = read_mask(tmp_path / "set" / row.mask, exif=False)
            assert mask.shape == (demo.image_size, demo.image_size)
            assert 0.01 < mask.mean() < 0.2


def test_visa_masks_number_the_kinds_and_jpeg_stays_close_to_what_was_painted(small_sets, tmp_path):
    write_demo("demo-visa", tmp_path)
    data = tmp_path / "coins" / "Data"
    masks = sorted((data / "Masks" / "Anomaly").iterdir())
    assert [set(np.unique(Image.open(path))) for path in masks] == [{0, 1}, {0, 2}, {0, 3}]
    painted = next(s for s in samples(small_sets["demo-visa"], 0) if s.split == "test")
    written = read_image(data / "Images" / "Normal" / "0001.JPG", exif=False)
    assert np.abs(written.astype(int) - painted.image).mean() < 2


@pytest.mark.parametrize("defect", sorted(DRAWINGS))
def test_painter_changes_the_masked_pixels_and_no_others(defect: str) -> None:
    demo = next(d for d in DEMO_SETS.values() if defect in d.painters)
    for category, photograph in demo.categories.items():
        rng = np.random.default_rng([5, len(category)])
        pixels = photographs.read_photograph(photograph)
        clean = photographs.view(pixels, demo.image_size, rng)
        painted, mask = paint(clean, defect, rng)
        changed = (painted != clean).any(axis=-1)
        assert not changed[~mask].any()
        assert changed[mask].mean() > 0.95
        assert painted.min() >= 0
        assert painted.max() <= 1


def test_sets_share_no_photograph_and_no_painter() -> None:
    photos = [p.file for demo in DEMO_SETS.values() for p in demo.categories.values()]
    painters = [name for demo in DEMO_SETS.values() for name in demo.painters]
    assert len(photos) == len(set(photos))
    assert sorted(painters) == sorted(DRAWINGS)


def test_photographs_are_large_enough_for_every_rotation() -> None:
    for demo in DEMO_SETS.values():
        for photograph in demo.categories.values():
            height, width, _ = photographs.read_photograph(photograph).shape
            assert min(height, width) >= 1.1 * demo.image_size


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_local_contrast_does_not_find_the_defects(name: str, seed: int) -> None:
    # No image depends on how many there are: half of those for testing are painted.
    half = replace(DEMO_SETS[name], train=0, normal=6, anomalous=6)
    widths = WIDTHS if seed == 0 else (2.0, 6.0)
    aurocs = contrast_auroc(samples(half, seed), widths=widths).values()
    assert max(aurocs) <= 0.75
    assert min(aurocs) >= 0.25  # neither does its absence


def test_contrast_auroc_of_vivid_paint_is_one() -> None:
    image, mask = np.full((60, 60, 3), 128, np.uint8), np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    image[mask] = np.random.default_rng(0).integers(0, 256, (400, 1))
    vivid = Sample("c", "test", "paint", 0, image, mask)
    assert contrast_auroc([vivid], widths=(4.0,), smoothings=(4.0,), stride=1)[4.0, 4.0] > 0.95


def test_the_same_set_is_left_alone_another_seed_replaced_and_another_set_refused(
    small_sets: dict[str, DemoSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, seed in (("set", 7), ("set", 0), ("fresh", 0)):
        write_demo("demo-mvtec", tmp_path / folder, seed=seed)
    assert files(tmp_path / "set") == files(tmp_path / "fresh")
    monkeypatch.setattr(demo_module, "samples", None)
    write_demo("demo-mvtec", tmp_path / "set")
    with pytest.raises(SpgError, match="holds no demo set demo-visa"):
        write_demo("demo-visa", tmp_path / "set")


def test_a_failure_leaves_nothing_behind(small_sets, tmp_path, monkeypatch):
    def fail(folder: Path, *names: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo_module, "file_digests", fail)
    with pytest.raises(OSError, match="disk full"):
        write_demo("demo-visa", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"name": "demo"}, "'demo-mvtec' or 'demo-visa'"), ({"seed": -1}, "seed.*equal to 0")],
)
def test_unknown_names_and_negative_seeds_are_told(setting: dict, message: str) -> None:
    with pytest.raises(SpgError, match=message):
        validated(RecipeDemoSet, {"name": "demo-visa", "root": "set"} | setting, "--set")


def test_another_photograph_of_the_same_name_is_refused() -> None:
    photograph = DEMO_SETS["demo-mvtec"].categories["brick"]
    with pytest.raises(SpgError, match=r"brick\.png has sha256"):
        photographs.read_photograph(replace(photograph, sha256="0" * 64))
    with pytest.raises(SpgError, match=r"none\.png has sha256 none, the demo"):
        photographs.read_photograph(replace(photograph, file="none.png"))
