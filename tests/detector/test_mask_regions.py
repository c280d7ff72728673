"""The masks that maps are judged by: whose they are, and that they are labelled once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SIZE, manifest_of, write_folder

import spg_pipe.metrics.regions as regions_module
from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.detector.mask_regions import MaskRegions, RegionCache
from spg_pipe.metrics import Regions
from spg_pipe.store.reader import FeatureStore


def test_at_the_models_size_they_are_the_stores(tiny_store: FeatureStore) -> None:
    judged = MaskRegions(tiny_store)
    for image, mask in enumerate(tiny_store.masks(np.arange(len(tiny_store)))):
        regions, expected = judged.regions(image), Regions.of(mask)
        assert (regions.shape, regions.count) == ((SIZE, SIZE), expected.count)
        np.testing.assert_array_equal(regions.places(), expected.places())
        assert judged.pixels(image) == SIZE * SIZE


def test_a_mask_is_labelled_once_for_every_detector(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = np.flatnonzero(tiny_store.array("mask_state") == MaskState.GIVEN).tolist()
    first = [MaskRegions(tiny_store).regions(image) for image in masked]
    monkeypatch.setattr(regions_module, "label_regions", lambda _: 1 / 0)
    again = MaskRegions(FeatureStore(tiny_store.path))
    assert [again.regions(image) for image in masked] == first


def test_a_mask_file_that_was_corrected_is_labelled_again(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    manifest = manifest_of(write_folder(tmp_path / "parts"))
    image = int(np.flatnonzero(manifest.table["mask_state"] == MaskState.GIVEN)[0])
    assert MaskRegions(tiny_store, manifest).regions(image).count > 0
    path = manifest.root / manifest.table["mask"][image]
    before = np.asarray(Image.open(path))
    corrected = np.zeros_like(before)
    corrected[:2, :5] = corrected[9, 9] = 255
    path.unlink()
    Image.fromarray(corrected).save(path)
    found = MaskRegions(tiny_store, manifest).regions(image)
    np.testing.assert_array_equal(found.places(), np.flatnonzero(corrected))


def test_without_a_mask_no_file_is_read(tiny_store: FeatureStore, tiny_manifest: Manifest) -> None:
    judged = MaskRegions(tiny_store, tiny_manifest)
    normal = int(np.flatnonzero(tiny_store.array("mask_state") != MaskState.GIVEN)[0])
    row = tiny_manifest.table.iloc[normal]
    assert judged.regions(normal).shape == (row["height"], row["width"])
    assert judged.regions(normal).count == 0


def test_what_is_kept_stays_within_its_bound() -> None:
    cache = RegionCache(limit=3000)
    rng = np.random.default_rng(0)
    noise = (rng.random((24, 24)) < 0.5).astype(np.uint8)
    for number in range(50):
        assert cache.get(number, lambda: noise).count == Regions.of(noise).count
        assert cache.nbytes <= 3000
    assert cache.nbytes > 0


def test_a_mask_of_blobs_takes_a_few_kilobytes() -> None:
    rows, columns = np.mgrid[:448, :448]
    mask = (rows - 200) ** 2 + (columns - 150) ** 2 < 60**2
    assert Regions.of(mask).nbytes < 2000
