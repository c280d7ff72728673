"""What a store looks like from outside: plain Zarr, Dask and xarray read it (docs/store.md)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SIZE, SPEC, TinyBackbone

from spg_pipe.images.preprocess import preprocess, resize_mask
from spg_pipe.images.reading import read_image, read_mask
from spg_pipe.store.reader import FeatureStore

OUTSIDER = """
import json, sys, warnings

class NoSuchProject:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "spg_pipe":
            raise ImportError("this process has only public readers")

sys.meta_path.insert(0, NoSuchProject())
import dask.array, numpy, xarray, zarr
warnings.simplefilter("error")
root, out = sys.argv[1:]
group = zarr.open_group(root, mode="r")
dataset = xarray.open_zarr(root)
lazily = xarray.open_zarr(root, chunks=None)
arrays = {}
for layer in group.attrs["layers"]:
    name = f"tokens_{layer}"
    arrays[f"zarr_{layer}"] = group[name][...]
    arrays[f"dask_{layer}"] = dask.array.from_zarr(root, component=name).compute()
    in_shards = dask.array.from_zarr(root, component=name, chunks=(6, -1, -1))
    arrays[f"dask in chunks_{layer}"] = in_shards.compute()
    arrays[f"xarray_{layer}"] = dataset[name].values
    arrays[f"xarray in chunks_{layer}"] = lazily[name].chunk(image=6).values
numpy.savez(
    out, mask=dataset["mask"].values, label=dataset["label"].values,
    prefix=dataset["prefix_2"].values, **arrays,
)
names = {name: list(map(str, array.dims)) for name, array in dataset.variables.items()}
assert "spg_pipe" not in sys.modules
print(json.dumps({
    "dims": names, "sizes": dict(dataset.sizes), "paths": list(map(str, dataset["path"].values)),
    "coords": list(dataset.coords), "attrs": dict(dataset.attrs),
}))
"""
"""Only public readers, in a process that cannot import this project."""
READERS = ("zarr", "dask", "dask in chunks", "xarray", "xarray in chunks")


@pytest.fixture(scope="module")
def seen(
    tiny_store: FeatureStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, dict[str, np.ndarray]]:
    out = tmp_path_factory.mktemp("outsider") / "arrays.npz"
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDER, str(tiny_store.path), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=out.parent,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), dict(np.load(out))


def test_zarr_dask_and_xarray_read_the_numbers_of_our_reader(tiny_store, seen):
    facts, arrays = seen
    everything = np.arange(len(tiny_store))
    for layer in ("1", "2"):
        ours = tiny_store.tokens(layer, everything)
        assert np.isfinite(ours).all()
        for reader in READERS:
            assert np.array_equal(arrays[f"{reader}_{layer}"], ours), (reader, layer)
    assert np.array_equal(arrays["mask"], tiny_store.masks(everything))
    assert np.array_equal(arrays["prefix"][:, 0], tiny_store.cls("2", everything))
    assert facts["paths"] == tiny_store.table["path"].tolist()


def test_dimensions_are_named_and_two_grids_live_side_by_side(seen):
    facts = seen[0]
    per_image = ("mask_state", "label", "height", "width", "category", "defect", "path")
    dims = {name: ["image"] for name in (*per_image, "checksum_1", "checksum_2", "lost_regions")}
    dims |= {
        "tokens_1": ["image", "patch_1", "dim_1"],
        "tokens_2": ["image", "patch_2", "dim_2"],
        "prefix_1": ["image", "prefix_token_1", "dim_1"],
        "mean_2": ["dim_2"],
        "std_2": ["dim_2"],
        "mask": ["image", "y", "x"],
    }
    assert {name: facts["dims"][name] for name in dims} == dims
    assert facts["coords"] == []
    sizes = {"image": 16, "patch_1": 16, "dim_1": 12, "patch_2": 4, "dim_2": 8}
    assert facts["sizes"].items() >= sizes.items()


def test_the_attributes_say_what_the_store_holds(tiny_store, seen):
    attrs = seen[0]["attrs"]
    expected = {
        "complete": True,
        "schema": 2,
        "dataset": "parts",
        "split": "test",
        "images": 16,
        "backbone": SPEC.content(),
        "fingerprint": tiny_store.fingerprint,
        "licences": ["parts: CC0", "tiny weights: CC0"],
    }
    assert {name: attrs[name] for name in expected} == expected
    assert attrs["layers"]["2"] == {"grid": [2, 2], "dim": 8, "prefix": ["mean"]}
    assert "zarr" in attrs["versions"]


def test_tokens_are_the_backbones_own_in_float16(tiny_store, tiny_manifest):
    rows = np.array([0, 5, 15])
    pixels = [read_image(tiny_manifest.image_path(i), exif=tiny_manifest.exif) for i in rows]
    batch = np.stack([preprocess(image, SPEC.preprocess) for image in pixels])
    for layer, (patches, prefix, _) in TinyBackbone()(torch.from_numpy(batch)).items():
        np.testing.assert_allclose(tiny_store.tokens(layer, rows), patches.numpy(), atol=1e-3)
        np.testing.assert_allclose(tiny_store.cls(layer, rows), prefix[:, 0].numpy(), atol=1e-3)


def test_masks_labels_and_states_follow_the_manifest_and_a_missing_mask_is_never_normal(
    tiny_store, tiny_manifest
):
    table = tiny_store.table
    for column in table.columns:
        assert table[column].tolist() == tiny_manifest.table[column].tolist(), column
    missing = table[table["mask_state"] == 2]
    assert missing["path"].tolist() == ["bolt/dent/03.png", "nut/dent/03.png"]
    assert (missing["label"] == 1).all()
    for image in range(len(tiny_store)):
        stored = tiny_store.masks(np.array([image]))[0]
        path = tiny_manifest.mask_path(image)
        expected = np.zeros((SIZE, SIZE), np.uint8)
        if path is not None:
            expected = resize_mask(read_mask(path, exif=tiny_manifest.exif), SIZE)
        assert np.array_equal(stored, expected)


def test_means_and_deviations_are_over_all_patch_tokens(tiny_store: FeatureStore) -> None:
    for layer in tiny_store.layers:
        flat = tiny_store.tokens(layer, np.arange(16)).astype(np.float64)
        flat = flat.reshape(-1, flat.shape[-1])
        np.testing.assert_allclose(tiny_store.array(f"mean_{layer}"), flat.mean(0), atol=1e-12)
        np.testing.assert_allclose(tiny_store.array(f"std_{layer}"), flat.std(0), atol=1e-9)


def test_an_image_lies_at_a_fixed_offset_of_its_uncompressed_shard(tiny_store):
    image_bytes = 16 * 12 * 2
    for image in (0, 5, 6, 15):
        shard, place = divmod(image, 6)
        data = (tiny_store.path / f"tokens_1/c/{shard}/0/0").read_bytes()
        tokens = np.frombuffer(data[place * image_bytes :][:image_bytes], "<f2").reshape(16, 12)
        assert np.array_equal(tokens, tiny_store.tokens("1", np.array([image]))[0])


def test_shards_json_lists_every_chunk_file_with_its_size(tiny_store: FeatureStore) -> None:
    entries = json.loads((tiny_store.path / "shards.json").read_text())["files"]
    on_disk = {
        path.relative_to(tiny_store.path).as_posix(): path.stat().st_size
        for path in tiny_store.path.rglob("*")
        if path.is_file() and "c" in path.parts[-4:-1]
    }
    assert {entry["name"]: entry["bytes"] for entry in entries} == on_disk
    assert {tuple(entry["images"]) for entry in entries} == {(0, 6), (6, 12), (12, 16), (0, 16)}
    # Shards of empty masks are there all the same.
    assert not tiny_store.masks(np.arange(4)).any()
    assert {f"mask/c/{shard}/0/0" for shard in range(3)} <= set(on_disk)


def test_a_store_opens_by_a_relative_path(tiny_store, monkeypatch):
    monkeypatch.chdir(tiny_store.path.parent)
    again = FeatureStore(Path(tiny_store.path.name))
    assert again.fingerprint == tiny_store.fingerprint
