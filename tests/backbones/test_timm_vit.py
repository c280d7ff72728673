"""Vision transformers of timm: which tokens, of which layer, with which norm."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones.helpers import make_smaller, random_images, random_model, save_weights
from spg_pipe.backbones import load_backbone
from spg_pipe.errors import SpgError

DINOV3 = "vit_tiny_patch16_dinov3_qkvb"  # 12 blocks, 192 wide, 4 registers, rotary positions
DINOV2_REG = "vit_small_patch14_reg4_dinov2"
PLAIN = "test_vit"  # 6 blocks, 64 wide, learned positions of a 10 × 10 grid


def saved_model(name, factory):
    model = random_model(name)
    return model, save_weights(model, factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory):
    return saved_model(DINOV3, tmp_path_factory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved_model(PLAIN, tmp_path_factory)


def block_outputs(model, images):
    """What every block returns, collected by hooks: the definition of a layer."""
    outputs = []
    hooks = [b.register_forward_hook(lambda *args: outputs.append(args[2])) for b in model.blocks]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("size", [64, 112])
def test_shapes_at_any_multiple_of_the_patch_size(dinov3, size):
    backbone = load_backbone(DINOV3, image_size=size, layers=[3, 12], weights=dinov3[1])
    tokens = backbone(random_images(size))
    assert list(tokens) == ["3", "12"]
    side = size // 16
    for layer in tokens.values():
        shapes = (layer.grid, layer.patches.shape, layer.prefix.shape)
        assert shapes == ((side, side), (2, side * side, 192), (2, 1, 192))
        assert layer.patches.dtype == layer.prefix.dtype == torch.float32
        assert not layer.patches.requires_grad


def test_layers_are_counted_from_one_and_keep_the_order_asked_for(dinov3):
    model, weights = dinov3
    images = random_images(64)
    expected = block_outputs(model, images)
    backbone = load_backbone(
        DINOV3, image_size=64, layers=["12", 1, 5], norm="pre", weights=weights
    )
    tokens = backbone(images)
    assert list(tokens) == ["12", "1", "5"]
    for name, layer in tokens.items():
        block = expected[int(name) - 1]
        torch.testing.assert_close(layer.prefix, block[:, :1])
        torch.testing.assert_close(layer.patches, block[:, 5:])  # 1 class token, 4 registers


def test_norm_post_applies_the_final_norm_to_a_middle_layer_too(dinov3):
    model, weights = dinov3
    images = random_images(64)
    outputs = block_outputs(model, images)
    with torch.no_grad():
        middle = model.norm(outputs[3])
    tokens = load_backbone(DINOV3, image_size=64, layers=[4, 12], weights=weights)(images)
    torch.testing.assert_close(tokens["4"].patches, middle[:, 5:])
    spec = load_backbone(DINOV3, image_size=64, protocol="spg", weights=weights).spec
    assert spec.norm == "post"  # of DINOv2 it is "pre"
    assert (spec.preprocess.order, spec.preprocess.interpolation) == ("float", "bilinear")
    with torch.no_grad():
        last = model.forward_features(images)
    torch.testing.assert_close(tokens["12"].patches, last[:, 5:])
    torch.testing.assert_close(tokens["12"].prefix, last[:, :1])


def test_position_embeddings_are_resized_as_timm_does(plain):
    model, weights = plain
    images = random_images(96)
    default, small = (load_backbone(PLAIN, image_size=s, weights=weights) for s in (None, 96))
    with torch.no_grad():
        expected = model.forward_features(images)
    torch.testing.assert_close(small(images)["6"].patches, expected[:, 1:])
    spec = default.spec  # the last layer after the norm
    assert (spec.layers, spec.norm, spec.patch_size) == (("6",), "post", 16)
    assert spec.preprocess.size == 160


def test_an_image_alone_has_the_tokens_it_has_in_a_batch(plain):
    backbone = load_backbone(PLAIN, weights=plain[1])
    images = random_images(160, batch=3)
    batch, alone = backbone(images)["6"], backbone(images[1:2])["6"]
    torch.testing.assert_close(batch.patches[1:2], alone.patches)


@pytest.mark.parametrize(
    ("name", "size", "block", "width", "prefixes"),
    [
        ("test_vit3", 160, 9, 96, 1),  # a register, which must not pass for a class token
        ("vit_medium_patch16_gap_240", 64, 2, 64, 0),
    ],
)
def test_without_a_class_token_the_mean_patch_token_stands_in(
    name, size, block, width, prefixes, tmp_path, monkeypatch
):
    if not prefixes:
        make_smaller(monkeypatch, name, embed_dim=width, depth=2, num_heads=1)
    model = random_model(name)
    assert model.num_prefix_tokens == prefixes
    assert model.cls_token is None
    weights = save_weights(model, tmp_path / "w.safetensors")
    backbone = load_backbone(name, image_size=size, layers=[block], weights=weights)
    tokens = backbone(random_images(size))[str(block)]
    assert tokens.patches.shape == (2, (size // 16) ** 2, width)
    torch.testing.assert_close(tokens.prefix[:, 0], tokens.patches.mean(dim=1))


def test_a_model_that_norms_only_its_pooled_feature_has_no_post_norm(tmp_path):
    weights = save_weights(random_model("test_vit2"), tmp_path / "w.safetensors")
    assert load_backbone("test_vit2", weights=weights).spec.norm == "pre"
    with pytest.raises(SpgError, match="norm: pre"):
        load_backbone("test_vit2", norm="post", weights=weights)


def test_dinov2_drops_registers_and_protocol_spg_takes_it_before_the_norm(tmp_path):
    model = random_model(DINOV2_REG)
    weights = save_weights(model, tmp_path / "w.safetensors")
    images = random_images(70)
    expected = block_outputs(model, images)[11]
    spg, default = (
        load_backbone("dinov2-reg-small", image_size=70, protocol=protocol, weights=weights)
        for protocol in ("spg", "default")
    )
    assert (spg.spec.norm, default.spec.norm) == ("pre", "post")
    assert spg.spec.layers == ("12",)
    preprocessing = default.spec.preprocess
    assert (preprocessing.order, preprocessing.interpolation) == ("uint8", "bicubic")
    torch.testing.assert_close(spg(images)["12"].patches, expected[:, 5:])
    torch.testing.assert_close(default(images)["12"].prefix, model.norm(expected)[:, :1])


def test_beit_resizes_its_relative_positions(tmp_path, monkeypatch):
    name = "beit_base_patch16_224"
    make_smaller(monkeypatch, name, depth=1)
    model = timm.create_model(name, num_classes=0)
    weights = save_weights(model, tmp_path / "w.safetensors")
    backbone = load_backbone(name, image_size=64, layers=[1], norm="pre", weights=weights)
    assert backbone(random_images(64))["1"].patches.shape == (2, 16, 768)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, r"multiple of 16 .*96 or 112"),
        ({"image_size": 0}, r"Nearest valid: 16"),
        ({"layers": [0]}, "numbered from 1 to 12"),
        ({"layers": [13]}, "numbered from 1 to 12"),
        ({"layers": ["s8"]}, "numbered from 1 to 12"),
        ({"layers": [3, "3"]}, "named twice"),
        ({"layers": []}, "must be a list"),
        ({"norm": "final"}, "'post' or 'pre'"),
    ],
)
def test_wrong_settings_are_refused_before_any_weights(options, message, tmp_path):
    with pytest.raises(SpgError, match=message):
        load_backbone(DINOV3, weights=tmp_path / "absent.safetensors", **options)


def test_images_of_another_size_are_refused(plain):
    backbone = load_backbone(PLAIN, weights=plain[1])
    with pytest.raises(SpgError, match=r"\(B, 3, 160, 160\).*\(2, 3, 96, 96\)"):
        backbone(random_images(96))


def test_vit_large_dinov3_gives_784_tokens_of_1024_at_448(tmp_path, monkeypatch):
    # One block of its 24: the others give tokens of the same number and width.
    make_smaller(monkeypatch, "vit_large_patch16_dinov3", depth=1)
    model = timm.create_model("vit_large_patch16_dinov3", num_classes=0)
    weights = save_weights(model, tmp_path / "w.safetensors")
    backbone = load_backbone("dinov3", layers=[1], weights=weights)
    assert backbone.spec.alias == "dinov3-large"
    assert backbone(random_images(448, batch=1))["1"].patches.shape == (1, 784, 1024)
