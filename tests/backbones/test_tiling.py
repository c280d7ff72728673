"""Large images in tiles: one grid, no seams, and everything after it as for any other store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    METHOD,
    SAE,
    SIZE,
    SPEC,
    TinyBackbone,
    additive_plan,
    extracted,
    manifest_of,
    write_folder,
)
from torch import Tensor

from spg_pipe.backbones.base import Backbone, LayerTokens
from spg_pipe.backbones.spec import BackboneSpec, Tiles
from spg_pipe.backbones.tiling import blend, tiled
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.detector.judge import judge
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError
from spg_pipe.predict.items import Reading, find_items
from spg_pipe.predict.judge import JudgedImage, judge_items
from spg_pipe.predict.predictor import Predictor
from spg_pipe.sae.train import train_sae


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("side", [32, 48, 80, 144])
def test_tiles_cover_an_image_and_overlap_as_asked(side: int, overlap: float) -> None:
    starts = Tiles(size=32, sides=(side,), overlap=overlap).starts(side, 16)
    assert (starts[0], starts[-1]) == (0, side - 32)
    assert all(start % 16 == 0 for start in starts)
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= min(32, 32 * (1 - overlap) + 16)).all()


@pytest.mark.parametrize("places", [[0], [0, 3], [0, 2, 4], [0, 4, 8]])
def test_weights_of_all_tiles_add_up_to_one(places: list[int]) -> None:
    total = torch.zeros(places[-1] + 4)
    for place, weights in zip(places, blend(places, 4, places[-1] + 4), strict=True):
        assert (weights > 0).all()
        total[place : place + 4] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("side", [32, 80])
def test_a_network_that_sees_one_patch_at_a_time_gives_the_same_in_tiles(side, at_once):
    pixels = images(side)
    found = tiled(TinyBackbone(), [side], at_once=at_once)(pixels)
    expected = TinyBackbone()(pixels)
    assert list(found) == ["1", "2"]
    for layer, tokens in found.items():
        assert tokens.grid == expected[layer].grid
        torch.testing.assert_close(tokens.patches, expected[layer].patches)
        assert tokens.prefix.shape == expected[layer].prefix.shape


class Bordered(TinyBackbone):
    """Knows where a patch lies in its tile, as every real network does: +1 in its left column."""

    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        found = super().__call__(images)
        for tokens in found.values():
            tokens.patches.unflatten(1, tokens.grid)[:, :, 0] += 1
        return found


def test_tiles_are_blended_so_that_a_border_does_not_show() -> None:
    patches = tiled(Bordered(), [80], overlap=0.5)(images(80, 1))["1"].patches
    plain = TinyBackbone()(images(80, 1))["1"].patches
    step = (patches - plain)[0].unflatten(0, (10, 10)).mean(dim=(0, 2))
    assert step[0] == pytest.approx(1, abs=1e-5)  # the image's own border
    # Inner tiles begin at columns 2, 4 and 6, and count least there.
    assert step[1:].max() < 0.3


def test_several_sides_give_every_layer_at_each() -> None:
    backbone = tiled(TinyBackbone(), [80, 32])
    found = backbone(images(80, 1))
    grids = {"1@32": (4, 4), "2@32": (2, 2), "1@80": (10, 10), "2@80": (5, 5)}
    assert {name: tokens.grid for name, tokens in found.items()} == grids
    small = F.interpolate(images(80, 1), (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(found["1@32"].patches, TinyBackbone()(small)["1"].patches)
    assert backbone.spec.seen_at == "tiny@32+80 in tiles of 32 (overlap 25%)"


def test_the_spec_says_how_it_is_cut_and_comes_back_from_json() -> None:
    spec = tiled(TinyBackbone(), [80], overlap=0.5).spec
    assert spec.preprocess.size == 80
    assert spec.untiled == SPEC
    assert spec.inputs_per_image == 16
    assert BackboneSpec.model_validate(spec.content()) == spec
    # Stores and detectors that were made before there were tiles keep their fingerprints.
    assert "tiles" not in SPEC.content()


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([40], "must be a multiple of 16 pixels"),
        ([16], "smaller than a tile of tiny, 32 pixels"),
        ([64, 64], "twice"),
        ([32 * 100], "tiles of 32 pixels an image; at most 4,096"),
    ],
)
def test_sides_that_do_not_fit_are_refused(sides: list[int], message: str) -> None:
    with pytest.raises(SpgError, match=message):
        tiled(TinyBackbone(), sides)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return manifest_of(write_folder(tmp_path_factory.mktemp("large") / "parts", size=(96, 112)))


def test_a_store_of_tiles_is_scored_by_a_detector_of_single_views(
    manifest, tiny_detector, tmp_path
):
    store = extracted(manifest, tmp_path / "tiles.zarr", backbone=tiled(TinyBackbone(), [80]))
    assert store.image_size == 80
    assert store.masks(np.arange(2)).shape == (2, 80, 80)
    # Nine tiles or more an image: a shard and a batch hold so many images fewer.
    assert (store.spec.shard_images, store.spec.batch_images) == (1, 1)
    scores = score_store(tiny_detector, store, tmp_path / "scores")
    assert scores.maps(np.arange(3)).shape == (3, 80, 80)
    assert np.isfinite(scores.table["score"]).all()
    both = extracted(manifest, tmp_path / "both.zarr", backbone=tiled(TinyBackbone(), [32, 80]))
    scores = score_store(tiny_detector, both, tmp_path / "scores-both")
    assert list(scores.patches(np.arange(1))) == ["1@32", "2@32", "1@80", "2@80"]
    other = tiled(TinyBackbone(preprocess=replace(SPEC.preprocess, size=2 * SIZE)), [96])
    with pytest.raises(SpgError, match="another backbone"):  # tiles of another size
        tiny_detector.check_backbone(other.spec, "this store")
    with pytest.raises(SpgError, match=r"holds images in tiles .tiny@80 in tiles of 32"):
        train_sae(store, SAE, METHOD, seed=1)


def test_predict_gives_maps_of_tiles_at_the_images_own_size(manifest, tiny_detector, tmp_path):
    items = find_items([str(manifest.root / "bolt" / "good")], tmp_path / "out").listed
    predictor = Predictor(tiny_detector, tiled(TinyBackbone(), [80]))
    every = judge_items(predictor, items, Reading(), lambda image: image)
    judged = [each for each in every if isinstance(each, JudgedImage)]
    assert {image.anomaly_map.shape for image in judged} == {(96, 112)}
    many = predictor.judge([image.pixels for image in judged]).columns["score"]
    np.testing.assert_allclose([image.columns["score"] for image in judged], many, rtol=1e-6)


def test_a_tiled_image_is_as_anomalous_as_its_worst_tile(tiny_store, tiny_sae):
    detector = make_detector(tiny_store, additive_plan(tiny_sae))[0]

    def columns(backbone: Backbone, pixels: Tensor) -> dict[str, np.ndarray]:
        found = backbone(pixels)
        tokens = {n: torch.cat([t.prefix, t.patches], dim=1) for n, t in found.items()}
        grids = {n: t.grid for n, t in found.items()}
        return judge(detector, tokens, grids, backbone.spec, detector.record.rule).columns

    # A single tile is the view that the detector knows.
    single = images(SIZE, 3)
    expected = columns(TinyBackbone(), single)
    for name, values in columns(tiled(TinyBackbone(), [SIZE]), single).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5)
    # Four tiles side by side, each as if it were an image of its own; and the whole, made small.
    large = images(2 * SIZE, 3)
    tiles = [tile for row in large.split(SIZE, dim=2) for tile in row.split(SIZE, dim=3)]
    each = [columns(TinyBackbone(), tile) for tile in tiles]
    found = columns(tiled(TinyBackbone(), [2 * SIZE], overlap=0.0), large)
    np.testing.assert_allclose(found["score"], np.max([e["score"] for e in each], 0), rtol=1e-4)
    small = F.interpolate(large, (SIZE, SIZE), mode="bilinear", antialias=True)
    each.append(columns(TinyBackbone(), small))
    found = columns(tiled(TinyBackbone(), [SIZE, 2 * SIZE], overlap=0.0), large)
    np.testing.assert_allclose(found["score"], np.max([e["score"] for e in each], 0), rtol=1e-4)
    shares = sum(values for name, values in found.items() if name.startswith("share_"))
    decision = detector.decision
    np.testing.assert_allclose(found["score"], decision.bias + shares, rtol=1e-6)
