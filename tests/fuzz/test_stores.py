"""Whatever a store's folder holds: an SpgError, or arrays as its attributes say."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import extracted, files

from fuzz.mutations import as_text, damaged_bytes, damaged_json, message_of
from spg_pipe.artefacts.files import fingerprint
from spg_pipe.store.format import StoreSpec, seal_of
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import crc32c
from spg_pipe.store.verify import verify

GROUP, INDEX = "zarr.json", "shards.json"


class Files(dict[str, bytes]):
    """Name → content, without its pages of bytes in Hypothesis' reports."""

    def __repr__(self) -> str:
        return f"{len(self)} files"


@pytest.fixture(scope="module")
def places(tiny_store, tiny_manifest, tmp_path_factory) -> dict[Path, dict[str, bytes]]:
    """A plain and a compressed store that may be damaged, each with what it held."""
    base = tmp_path_factory.mktemp("fuzz")
    plain = shutil.copytree(tiny_store.path, base / "plain.zarr")
    packed = extracted(tiny_manifest, base / "packed.zarr", compressor="zstd").path
    return {place: Files(files(place)) for place in (plain, packed)}


def sealed(group: Any, index: bytes) -> Any:
    """The group's metadata with the digests that its attributes, itself and the index give."""
    if not isinstance(group, dict) or not isinstance(group.get("attributes"), dict):
        return group
    beside = StoreSpec.BESIDE
    attributes = group["attributes"]
    content = {key: value for key, value in attributes.items() if key not in beside}
    backbone = content.get("backbone")
    if isinstance(backbone, dict):
        labels = ("alias", "weights", "licence")
        content["backbone"] = {k: v for k, v in backbone.items() if k not in labels}
    digests = {"index_sha256": hashlib.sha256(index).hexdigest()}
    try:
        digests["fingerprint"] = fingerprint(content)
        whole = {**group, "attributes": {**attributes, **digests}}
        return {**whole, "attributes": {**whole["attributes"], "seal": seal_of(whole)}}
    except (ValueError, RecursionError):
        return group


@st.composite
def damaged_store(draw: st.DrawFn, content: dict[str, bytes]) -> dict[str, bytes]:
    """Files that are other than they were: metadata, the index, or data with a right index."""
    group = json.loads(content[GROUP])
    how = draw(st.sampled_from(["attributes", "group", "array", "array", "index", "data"]))
    if how == "attributes":
        group["attributes"] = draw(damaged_json(group["attributes"]))
        return {GROUP: draw(as_text(sealed(group, content[INDEX])))}
    if how == "group":
        return {GROUP: draw(as_text(sealed(draw(damaged_json(group)), content[INDEX])))}
    if how == "array":
        arrays = group["consolidated_metadata"]["metadata"]
        name = draw(st.sampled_from(sorted(arrays)))
        arrays[name] = draw(damaged_json(arrays[name]))
        whole = json.dumps(sealed(group, content[INDEX])).encode()
        return {GROUP: whole, f"{name}/zarr.json": draw(as_text(arrays[name]))}
    index = json.loads(content[INDEX])
    if how == "index":
        text = draw(as_text(draw(damaged_json(index))))
        return {GROUP: json.dumps(sealed(group, text)).encode(), INDEX: text}
    entry = draw(st.sampled_from(index["files"]))
    data = draw(damaged_bytes(content[entry["name"]]))
    entry["bytes"] = len(data)
    if draw(st.booleans()):
        entry["crc32c"] = crc32c(data)
    text = json.dumps(index).encode()
    whole = json.dumps(sealed(group, text)).encode()
    return {GROUP: whole, INDEX: text, entry["name"]: data}


def use(place: Path) -> None:
    """Read a little of everything."""
    for plain in (False, True):
        store = FeatureStore(place, plain=plain)
        row = np.array([0])
        for layer, shape in store.spec.layers.items():
            tokens = store.tokens(layer, row)
            assert tokens.shape == (1, shape.patches, shape.dim)
            assert store.cls(layer, row).shape == (1, shape.dim)
            assert np.isfinite(store.array(f"mean_{layer}")).all()
        assert store.masks(row).max() <= 1
        assert len(store.table) == len(store)
        assert store.synthetic == {} or store.spec.sources


@given(st.data())
def test_a_damaged_store_is_an_error_or_arrays(places, data):
    place = data.draw(st.sampled_from(sorted(places)))
    content = places[place]
    changed = data.draw(damaged_store(content))
    try:
        for name, value in changed.items():
            (place / name).write_bytes(value)
        for check in (use, verify):
            assert "allocate" not in message_of(partial(check, place))
    finally:
        for name in changed:
            (place / name).write_bytes(content[name])
