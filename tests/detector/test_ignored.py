"""What is ignored has no part in scores and maps of a network that does not look around."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from tiny import (
    METHOD,
    SIZE,
    TinyBackbone,
    additive_plan,
    bank_of_store,
    extracted,
    plan_of,
    sae_params,
    weighted,
)
from torch import Tensor

from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.base import Backbone, LayerTokens
from spg_pipe.backbones.tiling import tiled
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.rules import Published
from spg_pipe.detector.judge import Judged, judge
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.recipe.params import BankParams, ImageScore
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore

SCORES: tuple[ImageScore, ...] = ("max", "top_mean", "log_mean_exp", "mix")


class Looking(TinyBackbone):
    """A small convolutional network: a patch sees so many pixels around it."""

    reach = 3

    def _layer(self, images: Tensor, patch: int, dim: int) -> LayerTokens:
        side = 2 * self.reach + 1
        around = F.avg_pool2d(images.cpu(), side, stride=1, padding=self.reach)
        return super()._layer(around, patch, dim)


def tokens_of(backbone: Backbone, images: Tensor):
    found = backbone(images)
    tokens = {n: torch.cat([t.prefix, t.patches], dim=1) for n, t in found.items()}
    return tokens, {n: t.grid for n, t in found.items()}


@pytest.fixture(scope="module")
def detectors(tiny_store: FeatureStore, tiny_sae: SaeRun) -> dict[str, Detector]:
    return {
        "additive": weighted(make_detector(tiny_store, additive_plan(tiny_sae))[0]),
        "published": make_detector(tiny_store, plan_of(tiny_sae))[0],
    }


def judged(
    detector: Detector,
    backbone: Backbone,
    images: Tensor,
    kept: Kept | None,
    score: ImageScore = "mix",
) -> Judged:
    tokens, grids = tokens_of(backbone, images)
    rule = detector.record.rule
    if isinstance(rule, Published):
        rule = Published(image_score=score)
    return judge(detector, tokens, grids, backbone.spec, rule, kept)


def require_equal(one: Judged, two: Judged, kept: Kept, size: int) -> None:
    """Every column and every pixel of the maps to the last bit."""
    for name, values in one.columns.items():
        assert np.array_equal(values, two.columns[name]), name
    maps = [anomaly_maps(each.patches, size, kept=kept) for each in (one, two)]
    assert np.array_equal(*maps)


def half(size: int, images: int = 2) -> Kept:
    """The left 3/8 of each image counts: patches of the second layer in part."""
    shares = torch.ones(images, size, size)
    shares[:, :, size * 3 // 8 :] = 0
    return Kept(shares)


@pytest.mark.parametrize("sides", [(), (SIZE,), (2 * SIZE,), (SIZE, 2 * SIZE)])
@pytest.mark.parametrize("kind", ["additive", "published"])
def test_pixels_that_no_patch_in_use_sees_change_nothing(
    detectors: dict[str, Detector], kind: str, sides: Sequence[int]
) -> None:
    """A patch of 16 pixels that counts in part sees so far, and `reach` farther."""
    size = sides[-1] if sides else SIZE
    network: Backbone = Looking()
    backbone = tiled(network, sides, overlap=0) if sides else network
    chance = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, size, size, generator=chance)
    other, kept = images.clone(), half(size)
    # Of two sides the smaller is blurred when it is made, so that patches see farther.
    seen = -(-size * 3 // 8 // 16) * 16 + Looking.reach + 12 * (len(sides) > 1)
    other[:, :, :, seen:] = torch.rand(2, 3, size, size - seen, generator=chance)
    detector = detectors[kind]
    for score in SCORES if kind == "published" else SCORES[:1]:
        first, second = (judged(detector, backbone, each, kept, score) for each in (images, other))
        require_equal(first, second, kept, size)
        # Without the mask it would: the test does not pass by what the detector does not see.
        unmasked = [judged(detector, backbone, each, None, score) for each in (images, other)]
        assert not np.array_equal(*(anomaly_maps(each.patches, size) for each in unmasked))


def test_a_tile_that_is_wholly_ignored_is_never_the_worst(detectors: dict[str, Detector]) -> None:
    size, detector = 2 * SIZE, detectors["additive"]
    backbone = tiled(TinyBackbone(), [size], overlap=0)
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(4))
    worst = judged(detector, backbone, images, None).tiles
    assert worst is not None
    top, left = divmod(int(worst[0]), 2)
    kept = Kept(torch.ones(1, size, size))
    kept.shares[:, top * SIZE : (top + 1) * SIZE, left * SIZE : (left + 1) * SIZE] = 0
    again = judged(detector, backbone, images, kept).tiles
    assert again is not None
    assert again[0] != worst[0]


@pytest.mark.parametrize("kind", ["additive", "published"])
def test_an_image_without_a_mask_has_the_same_bits_beside_one_with_a_mask(
    detectors: dict[str, Detector], kind: str
) -> None:
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    mask = half(SIZE, 1).shares[0].numpy()
    kept = Kept.of([None, mask])
    assert kept is not None
    alone, both = (judged(detectors[kind], TinyBackbone(), images, each) for each in (None, kept))
    for name, values in alone.columns.items():
        assert values[0] == both.columns[name][0]
    assert alone.columns["score"][1] != both.columns["score"][1]
    assert Kept.of([None, None]) is None


def test_a_bank_looks_at_what_counts(tiny_store: FeatureStore) -> None:
    bank = bank_of_store(tiny_store, np.arange(4), BankParams())
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    other, kept = images.clone(), half(SIZE)
    other[:, :, :, SIZE * 3 // 4 :] = 0.5
    kept = replace(kept, shares=kept.shares.clone())
    kept.shares[:, :, SIZE // 2 :] = 0  # so that no patch in use sees what is changed
    first, second = (
        bank.distances(tokens_of(TinyBackbone(), each)[0], kept) for each in (images, other)
    )
    assert np.array_equal(first.top, second.top)


def test_a_real_network_of_small_reach_leaks_nothing(tiny_manifest: Manifest, tmp_path) -> None:
    """EfficientNet-Lite0 at stride 8: what lies farther than its receptive field changes no bit."""
    size, edge = 256, 96
    backbone = load_backbone("efficientnet-lite0", image_size=size, layers=["s8"])
    store = extracted(tiny_manifest, tmp_path / "store.zarr", backbone=backbone)
    saes = train_sae(store, sae_params(dict_size=64, epochs=1), METHOD, seed=1)[0]
    detector = weighted(make_detector(store, additive_plan(saes))[0])
    chance = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, size, size, generator=chance)
    other, kept = images.clone(), Kept(torch.ones(2, size, size))
    kept.shares[:, :, edge:] = 0
    changed = edge + receptive_field("s8") // 2
    other[:, :, :, changed:] = torch.rand(2, 3, size, size - changed)
    require_equal(*(judged(detector, backbone, each, kept) for each in (images, other)), kept, size)
    other[:, :, :, edge:] = 0.5
    near = [judged(detector, backbone, each, kept).columns["score"] for each in (images, other)]
    assert not np.array_equal(*near)


def receptive_field(layer: str) -> int:
    """Pixels that a cell of a layer of EfficientNet-Lite0 sees, from its kernels and strides."""
    seen, step, stride = 1, 1, int(layer[1:])
    for module in timm.create_model("tf_efficientnet_lite0", features_only=True).modules():
        if isinstance(module, torch.nn.Conv2d):
            (kernel, _), (by, _) = module.kernel_size, module.stride
            if step * by > stride:
                break
            seen, step = seen + (kernel - 1) * step, step * by
    return seen
