"""What cannot be read at present is neither absent nor damaged; a hostile store is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fuzz.test_stores import sealed
from tiny import extracted

from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.verify import require_intact, verify

PASSING = [
    (errno.EACCES, "Permission denied.*owner and permissions"),
    (errno.EMFILE, "Too many open files.*ulimit"),
    (errno.EIO, "Input/output error.*Check the disk"),
]


@pytest.mark.parametrize(("code", "message"), PASSING)
@pytest.mark.parametrize("name", ["zarr.json", "shards.json", "label/zarr.json", "c/0"])
def test_what_fails_now_may_be_well(
    tiny_store, tiny_manifest, copy_of, monkeypatch, code, message, name
):
    place = copy_of(tiny_store.path)
    real = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.as_posix().endswith(name):
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(SpgError, match=rf"{name} cannot be read: {message}") as error:
        FeatureStore(place).files.read("label/c/0")
    assert not isinstance(error.value, DamagedError | NotThereError)
    assert "extract" not in str(error.value)
    if name == "zarr.json":
        with pytest.raises(SpgError, match="cannot be read"):
            extracted(tiny_manifest, place, replace=True)


@pytest.mark.parametrize(("code", "message"), PASSING)
def test_tokens_that_cannot_be_read_now_are_not_called_damaged(
    tiny_store, monkeypatch, code, message
):
    store = FeatureStore(tiny_store.path)

    def fails(path: object, *_: object) -> int:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("spg_pipe.store.tokens.os.open", fails)
    with pytest.raises(SpgError, match=rf"tokens_1/c/0/0/0 cannot be read: {message}") as error:
        store.tokens("1", np.array([0]))
    assert "--replace" not in str(error.value)


@pytest.mark.parametrize("name", ["zarr.json", "shards.json", "label/zarr.json"])
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_named_at_once(tiny_store, copy_of, name):
    place = copy_of(tiny_store.path)
    path = place / name
    path.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(path)
        with pytest.raises(SpgError, match=rf"{name} .*a folder, a pipe or a device"):
            FeatureStore(place)
        if make is os.mkfifo:
            path.unlink()


HOSTILE = {
    "layers.1.dim": (10**9, "dim"),
    "layers.1.grid": ([2**40, 1], "grid"),
    "images": (10**12, "images"),
    "shard_images": (0, "shard_images"),
    "backbone.preprocess.size": (10**6, "size"),
    "backbone.preprocess.std": ([0.0, 1.0, 1.0], "std"),
    "backbone.alias": ("open_clip:hf-hub:a/b", "alias"),
    "backbone.layers": (["../../x", "2"], "layers"),
    "backbone.weights": ("\x1b]0;title\x07", "weights"),
    "selection": ({"limit": []}, "limit"),
}


@pytest.mark.parametrize("key", HOSTILE)
def test_attributes_that_no_extract_writes_are_refused(tiny_store, copy_of, key):
    place, (value, message) = copy_of(tiny_store.path), HOSTILE[key]
    group = json.loads((place / "zarr.json").read_text())
    *above, last = key.split(".")
    parent = group["attributes"]
    for step in above:
        parent = parent[step]
    parent[last] = value
    write_sealed(place, group)
    with pytest.raises(DamagedError, match=message):
        FeatureStore(place)


def write_sealed(place: Path, group: object) -> None:
    """Write a group's metadata, with the digests that whoever forges a store would write."""
    text = json.dumps(sealed(group, (place / "shards.json").read_bytes()))
    (place / "zarr.json").write_text(text)


def chunks(images: int) -> dict[str, object]:
    return {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [images]}}}


def redeclared(place: Path, name: str, **changes: object) -> None:
    """Change the metadata of an array, in both places."""
    group = json.loads((place / "zarr.json").read_text())
    array = group["consolidated_metadata"]["metadata"][name]
    array |= changes
    (place / name / "zarr.json").write_text(json.dumps(array))
    write_sealed(place, group)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2**50]}, "declares another array"),
        ({"shape": []}, "not a whole store|another array"),
        (chunks(2**50), "declares another array"),
        (chunks(0), "not a whole store|another array"),
        ({"data_type": "complex128"}, "not a whole store|another array"),
        ({"data_type": "int32"}, "not a whole store|another array"),
        ({"codecs": [{"name": "numcodecs.pickle"}]}, "not a whole store: .*numcodecs.pickle"),
        ({"fill_value": "x"}, "not a whole store"),
        ({"zarr_format": 2}, "not a whole store"),
    ],
)
def test_an_array_that_is_declared_otherwise_is_refused_before_it_is_read(
    tiny_store, copy_of, changes, message
):
    place = copy_of(tiny_store.path)
    redeclared(place, "label", **changes)
    with pytest.raises(SpgError, match=message):
        FeatureStore(place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../../dev/zero"}, "dev/zero, no file of this store"),
        ({"images": [0, 7]}, "no file of this store"),
        ({"bytes": -1}, "not a whole index"),
        ({"crc32c": "x"}, "not a whole index"),
    ],
)
def test_an_index_that_names_other_files_is_refused(tiny_store, copy_of, change, message):
    place = copy_of(tiny_store.path)
    index = json.loads((place / "shards.json").read_text())
    index["files"][0] |= change
    (place / "shards.json").write_text(json.dumps(index))
    with pytest.raises(DamagedError, match=r"changed or damaged|not a whole index"):
        FeatureStore(place)
    write_sealed(place, json.loads((place / "zarr.json").read_text()))
    with pytest.raises(SpgError):
        FeatureStore(place)
    with pytest.raises(SpgError, match=message):
        require_intact(place, verify(place))
