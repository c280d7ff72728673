"""A store of images some of which are left out: what it says, resumes and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from layouts import scanned
from tiny import TinyBackbone, extracted, files, write_folder

from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.store.reader import selection_note

BAD = "bolt/good/02.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """16 images, one of them truncated."""
    root = write_folder(tmp_path / "parts")
    whole = shutil.copy(root / BAD, tmp_path / "whole.png")
    (root / BAD).write_bytes(whole.read_bytes()[:-200])
    return root


def skipping(root: Path) -> Manifest:
    return scanned("parts", "folder", root, licence="CC0", skip_bad=True)


def test_a_store_records_what_was_left_out_and_holds_no_row_for_it(folder, tmp_path):
    store = extracted(skipping(folder), tmp_path / "a.zarr")
    assert len(store) == 15
    assert BAD not in set(store.table["path"])
    (bad,) = store.spec.skipped
    assert bad.path == BAD
    assert "truncated" in bad.reason
    assert store.spec.notes[-1] == f"1 image left out (skip_bad): {BAD} {bad.reason}"
    folder.joinpath(BAD).unlink()
    clean = extracted(skipping(folder), tmp_path / "b.zarr")
    left, right = files(store.path), files(clean.path)
    assert {name for name in left if left[name] != right[name]} == {"zarr.json"}


def test_bad_images_come_and_go_without_new_tokens(folder: Path, tmp_path: Path) -> None:
    before = files(extracted(skipping(folder), tmp_path / "a.zarr").path)
    content = folder.joinpath(BAD).read_bytes()
    for there in (False, True):
        folder.joinpath(BAD).unlink() if not there else folder.joinpath(BAD).write_bytes(content)
        backbone = TinyBackbone()
        store = extracted(skipping(folder), tmp_path / "a.zarr", backbone=backbone)
        assert backbone.calls == 1  # asked for its shapes, no image
        assert [bad.path for bad in store.spec.skipped] == [BAD] * there
    assert files(store.path) == before


def test_a_repaired_image_is_noticed_and_named(folder: Path, tmp_path: Path) -> None:
    extracted(skipping(folder), tmp_path / "a.zarr")
    folder.joinpath(BAD).write_bytes((tmp_path / "whole.png").read_bytes())
    with pytest.raises(SpgError, match=rf"no longer left out: {BAD}.*Use --replace"):
        extracted(skipping(folder), tmp_path / "a.zarr")
    store = extracted(skipping(folder), tmp_path / "a.zarr", replace=True)
    assert (len(store), store.spec.skipped) == (16, ())


def test_a_part_is_marked_and_a_whole_is_not(tiny_manifest: Manifest, tmp_path: Path) -> None:
    part = extracted(tiny_manifest.spread(5), tmp_path / "a.zarr")
    assert part.selection == {"limit": 5, "of": 16}
    assert selection_note(part) == "5 of 16 images (--limit)"
    assert part.spec.notes[-1] == "5 of 16 images (--limit)"
    whole = extracted(tiny_manifest.spread(16), tmp_path / "b.zarr")
    assert (whole.selection, selection_note(whole)) == ({}, "")
