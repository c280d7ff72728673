"""Complete or refused: what a reader and a writer do not accept, and what they say."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import zarr
from tiny import TinyBackbone, extracted, files, flip, manifest_of, write_folder

from spg_pipe.backbones.base import LayerTokens
from spg_pipe.errors import SpgError
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import crc32c, in_folder, raw_bytes, shard_index, write_shard
from spg_pipe.store.verify import require_intact, verify

Copy = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("zarr.json", {"complete": False}, r"not finished.*spg-pipe extract.* goes on"),
        ("zarr.json", {"schema": 99}, "of schema 99; this version reads schema 2"),
        ("shards.json", "{", r"shards\.json is not a whole index"),
        ("shards.json", '{"files": [{"name": 1}]}', r"shards\.json is not a whole index"),
        ("shards.json", "[]", r"shards\.json is not a whole index"),
        ("shards.json", '{"files": []}', r"shards\.json .*changed or damaged"),
    ],
)
def test_an_unfinished_store_one_of_another_schema_and_a_damaged_index_are_refused(
    tiny_store, copy_of, file, content, message
):
    place = copy_of(tiny_store.path)
    if isinstance(content, dict):
        metadata = json.loads((place / file).read_text())
        content = json.dumps(metadata | {"attributes": metadata["attributes"] | content})
    (place / file).write_text(str(content))
    with pytest.raises(SpgError, match=message) as error:
        FeatureStore(place)
    assert str(place) in str(error.value)


def harm(path: Path, how: str) -> None:
    """Damage a file, or delete it."""
    data = path.read_bytes()
    if how == "flipped":
        flip(path, 3)
    elif how == "deleted":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[:-2], "longer": data + b"\0"}[how])


every_kind = pytest.mark.parametrize(
    "name", ["tokens_1/c/1/0/0", "prefix_2/c/0/0/0", "mask/c/2/0/0"]
)


@every_kind
@pytest.mark.parametrize("damage", ["truncated", "deleted", "longer"])
def test_a_damaged_file_is_refused_by_its_name_and_images(tiny_store, copy_of, name, damage):
    place = copy_of(tiny_store.path)
    size, shard = (place / name).stat().st_size, int(name.split("/")[2])
    harm(place / name, damage)
    images = f"images {6 * shard}…{min(6 * shard + 6, 16) - 1}"
    said = "is missing" if damage == "deleted" else "has "
    with pytest.raises(SpgError) as error:
        FeatureStore(place)
    for part in (name, images, f"expected {size} bytes", said, "--replace"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "content", [None, "not json", "{}", "[1]", '{"attributes": 3}', '{"attributes": {}}']
)
def test_what_is_no_store_is_refused(tmp_path: Path, content: str | None) -> None:
    place = tmp_path / "x.zarr"
    place.mkdir()
    if content is not None:
        (place / "zarr.json").write_text(content)
    with pytest.raises(SpgError, match="is not a feature store"):
        FeatureStore(place)


def test_another_content_in_the_place_is_refused_unless_replaced(
    tiny_store, tiny_manifest, tmp_path, copy_of
):
    place = copy_of(tiny_store.path)
    before = files(place)
    other = TinyBackbone(weights_sha256="1" * 64)
    message = r"store of other content.*backbone differs \(.*\).*--replace"
    with pytest.raises(SpgError, match=message):
        extracted(tiny_manifest, place, backbone=other)
    assert files(place) == before
    replaced = extracted(tiny_manifest, place, backbone=other, replace=True)
    assert replaced.spec.backbone.weights_sha256 == "1" * 64
    fresh = extracted(tiny_manifest, tmp_path / "fresh.zarr", backbone=other)
    assert files(place) == files(fresh.path)


@every_kind
@pytest.mark.parametrize("damage", ["truncated", "deleted", "flipped"])
def test_replace_mends_a_damaged_store(tiny_store, tiny_manifest, copy_of, name, damage):
    place = copy_of(tiny_store.path)
    harm(place / name, damage)
    extracted(tiny_manifest, place, replace=True)
    assert files(place) == files(tiny_store.path)


@pytest.mark.parametrize("replace", [False, True])
def test_something_that_is_no_store_is_never_removed(tiny_manifest, tmp_path, replace):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    before = files(tmp_path)
    for name in ("thesis", "file"):
        with pytest.raises(SpgError, match="is not a feature store"):
            extracted(tiny_manifest, tmp_path / name, replace=replace)
        assert before.items() <= files(tmp_path).items()


@pytest.mark.parametrize("scale", [1e6, float("nan")])
@pytest.mark.filterwarnings("error")
def test_tokens_that_do_not_fit_float16_name_their_layer(tiny_manifest, tmp_path, scale):
    with pytest.raises(SpgError, match=r"Layer 1 .* do not fit float16") as error:
        extracted(tiny_manifest, tmp_path / "a.zarr", backbone=TinyBackbone(scale))
    assert not (tmp_path / "a.zarr").exists()
    if np.isfinite(scale):
        assert "extract.dtype: float32" in str(error.value)
        (tmp_path / "a.zarr").mkdir()  # an empty folder is a place for a store
        how = {"backbone": TinyBackbone(scale), "dtype": "float32"}
        store = extracted(tiny_manifest, tmp_path / "a.zarr", **how)
        assert np.abs(store.tokens("1", np.arange(16))).max() > 65504


def test_no_image_and_a_truncated_image_stop_the_extract(tmp_path: Path) -> None:
    manifest = manifest_of(write_folder(tmp_path / "parts"))
    nothing = replace(manifest, table=manifest.table.iloc[:0])
    with pytest.raises(SpgError, match="has no images"):
        extracted(nothing, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
    broken = tmp_path / "parts/bolt/dent/02.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(SpgError, match=r"bolt/dent/02\.png"):
        extracted(manifest, tmp_path / "a.zarr")
    with pytest.raises(SpgError, match="not finished"):  # the first shard is kept
        FeatureStore(tmp_path / "a.zarr")


def test_verify_names_the_shard_and_the_image_of_a_flipped_bit(tiny_store, copy_of):
    assert verify(tiny_store.path) == []
    require_intact(tiny_store.path, [])
    place = copy_of(tiny_store.path)
    # In the third image of the second shard.
    flip(place / "tokens_1/c/1/0/0", 2 * 16 * 12 * 2 + 5, 4)
    faults = verify(place)
    text = "\n".join(faults)
    assert "tokens_1/c/1/0/0" in text
    assert "image 8 (nut/good/00.png)" in text
    with pytest.raises(SpgError, match="image 8"):
        require_intact(place, faults)


def test_the_index_is_zarrs_and_its_checksum_too(tiny_store: FeatureStore, copy_of: Copy) -> None:
    entry = next(e for e in tiny_store.entries if e.name == "tokens_1/c/2/0/0")
    data = (tiny_store.path / entry.name).read_bytes()
    assert crc32c(data) == entry.crc32c
    index = shard_index([16 * 12 * 2] * 4, 6)
    assert data.endswith(index)
    # zarr-python refuses a shard whose index checksum is off by one bit.
    place = copy_of(tiny_store.path)
    flip(place / entry.name, -1)
    array = zarr.open_group(place, mode="r")["tokens_1"]
    assert np.isfinite(array[0]).all()
    with pytest.raises(ValueError, match="checksum"):
        array[12]


@pytest.mark.parametrize(("images", "shard_images"), [(1, 1), (3, 3), (1, 4), (7, 8)])
def test_a_hand_written_shard_is_what_zarr_writes(tmp_path, images, shard_images):
    tokens = np.random.default_rng(0).random((images, 5, 3), np.float32).astype(np.float16)
    array = zarr.create_array(
        tmp_path / "theirs",
        shape=(images, 5, 3),
        chunks=(1, 5, 3),
        shards=(shard_images, 5, 3),
        dtype="float16",
        compressors=None,
        fill_value=np.nan,
    )
    array[...] = tokens
    theirs = tmp_path / "theirs/c/0/0/0"
    size = theirs.stat().st_size
    chunks = [raw_bytes(image) for image in tokens]
    write_shard(in_folder(theirs.parent), theirs.name, chunks, range(images), shard_images)
    assert theirs.stat().st_size == size
    assert np.array_equal(zarr.open_array(tmp_path / "theirs", mode="r")[...], tokens)


@pytest.mark.parametrize("damage", ["edited", "truncated", "deleted", "index"])
def test_a_store_with_damaged_metadata_is_named_and_written_anew(
    tiny_store, tiny_manifest, copy_of, damage
):
    place = copy_of(tiny_store.path)
    metadata = place / "zarr.json"
    if damage == "edited":
        metadata.write_text(metadata.read_text().replace('"split": "test"', '"split": "all"'))
    elif damage == "index":
        (place / "shards.json").write_text("{")
    else:
        harm(metadata, damage)
    with pytest.raises(SpgError, match=r"--replace"):
        FeatureStore(place)
    with pytest.raises(SpgError, match=r"--replace"):
        extracted(tiny_manifest, place)
    extracted(tiny_manifest, place, replace=True)
    assert files(place) == files(tiny_store.path)


@pytest.mark.parametrize("name", ["tokens_1", "prefix_2", "label"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied", "other"])
@pytest.mark.parametrize(("redo", "lost"), [(False, True), (True, True), (True, False)])
def test_damaged_metadata_of_an_array_is_named_and_mended(
    tiny_store, tiny_manifest, copy_of, name, damage, redo, lost
):
    place = copy_of(tiny_store.path)
    metadata = place / name / "zarr.json"
    if damage == "emptied":
        metadata.write_text("")
    elif damage == "other":
        metadata.write_text((place / "mask/zarr.json").read_text())
    else:
        harm(metadata, damage)
    if lost:
        (place / "tokens_1/c/1/0/0").unlink()
    fault = f"{name}/zarr.json is missing or damaged"
    assert any(fault in line for line in verify(place))
    with pytest.raises(SpgError, match="--replace" if lost else fault):
        FeatureStore(place)
    extracted(tiny_manifest, place, replace=redo)
    assert verify(place) == []
    assert files(place) == files(tiny_store.path)


def test_other_words_for_the_same_weights_are_no_other_content(tiny_store, tiny_manifest, copy_of):
    place = copy_of(tiny_store.path)
    labels = {"alias": "mine", "weights": "file: mine.pth", "licence": "asked"}
    backbone = TinyBackbone(**labels)
    extracted(tiny_manifest, place, backbone=backbone)
    assert backbone.calls == 1
    assert files(place) == files(tiny_store.path)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, r"s\.zarr\. Make room.*goes on"),
        (errno.EROFS, r"Check the disk, or choose another place\. --out names another place"),
        (errno.EEXIST, r"A file is in a folder's way"),
    ],
)
def test_the_advice_fits_the_error(tiny_manifest, tmp_path, monkeypatch, code, advice):
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("spg_pipe.store.writer.write_shard", fails)
    with pytest.raises(SpgError, match=advice):
        extracted(tiny_manifest, tmp_path / "s.zarr")


def test_a_gpu_without_memory_gets_the_batch_in_halves(tiny_store, tiny_manifest, tmp_path):
    class Small(TinyBackbone):
        sizes: ClassVar[list[int]] = []

        def __call__(self, images: torch.Tensor) -> dict[str, LayerTokens]:
            self.sizes.append(len(images))
            if len(images) > 1:
                raise torch.OutOfMemoryError
            return super().__call__(images)

    store = extracted(tiny_manifest, tmp_path / "s.zarr", backbone=Small())
    assert {4, 2, 1} <= set(Small.sizes)
    rows = np.arange(16)
    for layer in store.layers:
        assert np.allclose(store.tokens(layer, rows), tiny_store.tokens(layer, rows), atol=2e-3)
