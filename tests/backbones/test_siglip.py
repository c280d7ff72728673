"""SigLIP: patch tokens after the last norm, and what stands for the class token that it lacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import METHOD, SAE, extracted, plan_of, vectors_of

from backbones.helpers import (
    make_smaller,
    random_images,
    random_model,
    same_tokens,
    save_weights,
)
from spg_pipe.backbones import load_backbone
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import Preprocess
from spg_pipe.pipeline.checked_store import backbone_differences
from spg_pipe.recipe.params import parse_params
from spg_pipe.sae.train import train_sae

MODEL = "vit_base_patch16_siglip_512"
SPG = METHOD.model_copy(update={"protocol": "spg"})


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """timm's own SigLIP tower, 48 wide instead of 768, and its weights on disk."""
    with pytest.MonkeyPatch.context() as patch:
        make_smaller(patch, MODEL, embed_dim=48, num_heads=3)
        model = random_model(MODEL)
        yield model, save_weights(model, tmp_path_factory.mktemp("siglip") / "w.safetensors")


@torch.no_grad()
def literal(model, images):
    """Every block's output, from timm's layers in the order of the paper; no forward of timm's."""
    side = images.shape[-1] // 16
    x = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=16)
    table = model.pos_embed.reshape(1, 32, 32, -1).permute(0, 3, 1, 2)
    if side != 32:
        table = F.interpolate(table, (side, side), mode="bicubic", antialias=True)
    x = (x + table).flatten(2).transpose(1, 2)
    return [x := block(x) for block in model.blocks]


@pytest.mark.parametrize("size", [64, 112, 512])
def test_the_tokens_are_all_patches_after_the_last_norm_at_any_size(tower, size):
    model, weights = tower
    images = random_images(size)
    backbone = load_backbone("siglip-base", image_size=size, weights=weights)
    tokens = backbone(images)["12"]
    with torch.no_grad():
        expected = model.norm(literal(model, images)[-1])
        pooled = model(images)
    side = size // 16
    assert tokens.grid == (side, side)
    assert tokens.patches.shape == (2, side * side, 48)
    torch.testing.assert_close(tokens.patches, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.prefix, tokens.patches.mean(1, keepdim=True))
    assert (tokens.prefix[:, 0] - pooled).abs().max() > 0.1  # not the attention-pooled token


@torch.no_grad()
def test_a_middle_block_is_normed_too_or_taken_as_it_is(tower):
    model, weights = tower
    images = random_images(64)
    block = literal(model, images)[4]
    options = {"image_size": 64, "layers": [5], "weights": weights}
    for norm, expected in (("pre", block), ("post", model.norm(block))):
        backbone = load_backbone("siglip-base", norm=norm, **options)
        assert backbone.spec.norm == norm
        torch.testing.assert_close(backbone(images)["5"].patches, expected, rtol=1e-4, atol=1e-4)


def test_protocol_spg_has_zeros_for_cls_and_says_so(tower):
    images = random_images(64)
    options = {"image_size": 64, "weights": tower[1]}
    default = load_backbone("siglip2-base", **options)
    spg = load_backbone("siglip2-base", protocol="spg", **options)
    assert (default.spec.prefix, spg.spec.prefix) == ("mean", "zeros")
    assert spg.spec.model_copy(update={"prefix": "mean"}) == default.spec
    ours, theirs = default(images)["12"], spg(images)["12"]
    assert torch.equal(ours.patches, theirs.patches)
    assert torch.equal(theirs.prefix, torch.zeros(2, 1, 48))


def test_the_preprocessing_is_siglips_own(tower):
    spec = load_backbone("siglip-base", weights=tower[1]).spec
    assert spec.preprocess == Preprocess(512, "uint8", "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert spec.licence == "Apache-2.0"


def test_open_clips_file_of_the_tower_loads_too(tower, tmp_path):
    model, weights = tower
    nested = {f"visual.trunk.{k}": v.contiguous() for k, v in model.state_dict().items()}
    theirs = tmp_path / "open_clip.safetensors"
    save_file({**nested, "logit_scale": torch.ones(())}, theirs)
    same_tokens("siglip-base", (theirs, weights), 64, "12")
    key = "visual.trunk.patch_embed.proj.weight"
    nested[key] = nested[key][:, :, :14, :14].contiguous()
    save_file(nested, tmp_path / "patch14.safetensors")
    with pytest.raises(SpgError, match="another patch size or width"):
        load_backbone("siglip-base", image_size=64, weights=tmp_path / "patch14.safetensors")


def test_the_published_zeros_pin_the_detection_loss_at_log_2(tower, tiny_manifest, tmp_path):
    stores, curves = {}, {}
    for method in (METHOD, SPG):
        backbone = load_backbone(
            "siglip-base", image_size=32, protocol=method.protocol, weights=tower[1]
        )
        store = extracted(tiny_manifest, tmp_path / f"{method.protocol}.zarr", backbone=backbone)
        saes = train_sae(store, SAE, method, seed=1)[0]
        detector, curve = make_detector(store, plan_of(saes, 1, method=method))
        stores[method.protocol], curves[method.protocol] = store, curve
        assert all(math.isfinite(value) for row in curve for value in row.values())
        assert vectors_of(detector.layers["12"]).isfinite().all()
        scores = score_store(detector, store, tmp_path / method.protocol)
        zeros = method.protocol == "spg"
        assert np.array_equal(scores.table["score_cls"], [0.5] * len(store)) == zeros
    assert [row["detection"] for row in curves["spg"]] == pytest.approx([math.log(2)] * 3, rel=1e-7)
    assert abs(curves["default"][-1]["detection"] - math.log(2)) > 1e-4
    assert curves["spg"][-1]["segmentation"] < curves["spg"][0]["segmentation"]
    default, spg = stores["default"], stores["spg"]
    assert default.fingerprint != spg.fingerprint
    assert default.spec.layers["12"].prefix == ("mean",)
    assert spg.spec.layers["12"].prefix == ("zeros",)
    assert not spg.cls("12", np.arange(len(spg))).any()
    with pytest.raises(SpgError, match=r"prefix: the detector has 'zeros'.*has 'mean'"):
        detector.check_backbone(default.spec.backbone, "this store")


@pytest.mark.parametrize("protocol", ["default", "spg"])
def test_a_store_of_the_other_protocol_is_not_taken(tower, protocol):
    options = {"alias": "siglip-base", "image_size": 64, "weights": str(tower[1])}
    lists = {"datasets": [], "auxiliaries": [], "directions": []}
    recipe = {"name": "x", **lists, "backbone": options, "method": {"protocol": protocol}}
    params = parse_params(recipe, "test")
    for other in ("default", "spg"):
        made = load_backbone("siglip-base", image_size=64, protocol=other, weights=tower[1])
        assert bool(backbone_differences(made.spec, params)) == (other != protocol)
