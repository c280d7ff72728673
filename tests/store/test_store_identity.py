"""Same inputs, same bytes: twice, elsewhere, and after an interruption (docs/store.md)."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

import pytest
from tiny import TinyBackbone, extracted, files, manifest_of

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.backbones import precision
from spg_pipe.errors import SpgError
from spg_pipe.store import begin, finish, writer
from spg_pipe.store.reader import FeatureStore


def test_a_second_extract_elsewhere_gives_the_same_bytes(tiny_store, tiny_images, tmp_path):
    moved = shutil.copytree(tiny_images, tmp_path / "moved" / tiny_images.name)
    for path in moved.rglob("*.png"):
        os.utime(path, (time.time() - 9e6,) * 2)
    for workers in (1, 7):
        again = extracted(manifest_of(moved), tmp_path / f"{workers}.zarr", workers=workers)
        assert again.fingerprint == tiny_store.fingerprint
        assert files(again.path) == files(tiny_store.path)


@pytest.mark.parametrize("calls", [1, 2, 4, 5])
def test_an_interrupted_extract_goes_on_and_ends_with_the_same_bytes(
    tiny_store, tiny_manifest, tmp_path, calls
):
    place = tmp_path / "stopped.zarr"
    with pytest.raises(KeyboardInterrupt):
        # One worker, so that batches reach the backbone in their order.
        extracted(tiny_manifest, place, backbone=TinyBackbone(fail_after=calls), workers=1)
    if place.exists():
        with pytest.raises(SpgError, match="is not finished"):
            FeatureStore(place)
    backbone = TinyBackbone()
    resumed = extracted(tiny_manifest, place, backbone=backbone)
    assert files(resumed.path) == files(tiny_store.path)
    # The first call only asks for the shapes; then shards of 4 + 2, 4 + 2 and 4 images.
    left = {1: 5, 2: 5, 4: 3, 5: 1}[calls]
    assert backbone.calls == 1 + left


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        (writer, "write_shard", 4),  # tokens_1
        (writer, "write_file", 4),  # prefix_2
        (writer, "write_shard", 6),  # mask
        (writer, "write_part", 2),  # the record
        (finish, "write_array", 4),
        (finish, "save_entries", 1),
        (finish, "change_attributes", 1),  # the completeness mark
        (writer, "clear_parts", 1),
    ],
)
def test_a_kill_between_two_files_of_a_shard_is_mended(
    tiny_store, tiny_manifest, tmp_path, monkeypatch, module, function, call
):
    # In the second shard: after the files of the first are recorded.
    true, calls = getattr(module, function), iter(range(1, 99))

    def stops(*given: Any) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return true(*given)

    monkeypatch.setattr(module, function, stops)
    with pytest.raises(KeyboardInterrupt):
        extracted(tiny_manifest, tmp_path / "a.zarr")
    monkeypatch.undo()
    backbone = TinyBackbone()
    again = extracted(tiny_manifest, tmp_path / "a.zarr", backbone=backbone)
    assert files(again.path) == files(tiny_store.path)
    # The first call only asks for the shapes; the first shard, or every one, was there.
    assert backbone.calls == (1 if function in finish.__dict__ else 4)


def test_a_kill_while_the_arrays_are_declared_leaves_nothing_or_the_old_store(
    tiny_store, tiny_manifest, tmp_path, monkeypatch
):
    place, declare = tmp_path / "a.zarr", begin.create_arrays

    def stops(*given: Any) -> None:
        declare(*given)
        raise KeyboardInterrupt

    for old in (False, True):
        before = files(extracted(tiny_manifest, place, dtype="float32").path) if old else {}
        monkeypatch.setattr(begin, "create_arrays", stops)
        with pytest.raises(KeyboardInterrupt):
            extracted(tiny_manifest, place, replace=True)
        monkeypatch.undo()
        assert files(place) == before
        assert (
            sorted(path.name for path in tmp_path.iterdir())
            == [".a.zarr.lock", "a.zarr"][: 1 + old]
        )
    assert files(extracted(tiny_manifest, place, replace=True).path) == files(tiny_store.path)


def test_a_finished_store_is_returned_without_work(tiny_store, tiny_manifest):
    before = {p: p.stat().st_mtime_ns for p in tiny_store.path.rglob("*")}
    for replace in (False, True):
        backbone = TinyBackbone()
        again = extracted(tiny_manifest, tiny_store.path, backbone=backbone, replace=replace)
        assert again.fingerprint == tiny_store.fingerprint
        assert backbone.calls == 1
        assert {p: p.stat().st_mtime_ns for p in tiny_store.path.rglob("*")} == before


def test_the_fingerprint_follows_what_determines_the_content_alone(tiny_store):
    spec = tiny_store.spec
    backbone = spec.backbone
    changes = [
        {"dataset": "else"},
        {"manifest": "f" * 64},
        {"backbone": backbone.model_copy(update={"weights_sha256": "1" * 64})},
        {"backbone": backbone.model_copy(update={"norm": "pre"})},
        {"dtype": "float32"},
        {"exif": False},
    ]
    prints = {spec.model_copy(update=change).sealed().fingerprint for change in changes}
    assert len({tiny_store.fingerprint, *prints}) == 1 + len(changes)
    labels = {"alias": "mine", "weights": "file: mine.pth", "licence": "asked"}
    renamed = {"backbone": backbone.model_copy(update=labels), "notes": (), "layout": "visa"}
    renamed |= {"versions": {"torch": "0.0"}}
    assert spec.model_copy(update=renamed).sealed().fingerprint == tiny_store.fingerprint


def test_bfloat16_is_another_store_that_says_how_it_was_computed(
    tiny_manifest, tiny_store, tmp_path
):
    half = TinyBackbone(precision="bfloat16")
    made = extracted(tiny_manifest, tmp_path / "half.zarr", backbone=half)
    assert made.spec.computed == precision.computed_by("bfloat16", "cpu")
    assert made.fingerprint != tiny_store.fingerprint
    elsewhere = made.spec.model_copy(update={"computed": "bfloat16 by another machine"})
    assert elsewhere.sealed().fingerprint == made.fingerprint
    assert not {"computed", "precision"} & set(str(tiny_store.spec.attributes()).split("'"))
    with pytest.raises(SpgError, match=r"backbone differs \(precision\).*--replace"):
        extracted(tiny_manifest, tiny_store.path, backbone=half)


def test_float32_has_the_fingerprint_from_before_there_was_a_choice(tiny_store):
    content = tiny_store.spec.content()
    assert set(content["backbone"]) == {
        *("family", "model", "layers", "norm", "patch_size", "preprocess", "pos_embed"),
        *("prefix", "weights_sha256"),
    }
    assert tiny_store.fingerprint == fingerprint(content)
