"""Any timm model by its name: tokens on the right grid, or one clear reason why not."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones.helpers import make_smaller, random_images, save_weights
from spg_pipe.backbones import load_backbone
from spg_pipe.errors import SpgError

WORK = {
    # Plain ViTs: layer → patches a side and width.
    "vit_tiny_patch16_224": (96, {"12": (6, 192)}),
    "deit_tiny_patch16_224": (96, {"12": (6, 192)}),
    "deit_tiny_distilled_patch16_224": (96, {"12": (6, 192)}),
    "eva02_tiny_patch14_224": (84, {"12": (6, 192)}),
    "vit_tiny_patch16_dinov3_qkvb": (96, {"12": (6, 192)}),
    # CNNs and pyramids: every stride of the default.
    "resnet18": (96, {"s8": (12, 128), "s16": (6, 256)}),
    "convnext_atto": (96, {"s8": (12, 80), "s16": (6, 160)}),
    "mobilenetv3_small_050": (96, {"s8": (12, 16), "s16": (6, 24)}),
    "regnetx_002": (96, {"s8": (12, 56), "s16": (6, 152)}),
    "efficientvit_b0": (96, {"s8": (12, 32), "s16": (6, 64)}),
    "mobilevit_xxs": (96, {"s8": (12, 48), "s16": (6, 64)}),
    "pvt_v2_b0": (96, {"s8": (12, 64), "s16": (6, 160)}),
    "test_mambaout": (96, {"s8": (12, 32), "s16": (6, 48)}),
    # One size only. Windows, talking heads, a hybrid, convolution with attention.
    "swin_tiny_patch4_window7_224": (224, {"s8": (28, 48), "s16": (14, 96)}),
    "cait_xxs24_224": (224, {"s16": (14, 192)}),
    "levit_128s": (224, {"s16": (14, 128)}),
    "vit_tiny_r_s16_p8_224": (224, {"s32": (7, 192)}),
    "xcit_nano_12_p8_224": (224, {"s8": (28, 128)}),
    "test_coatnet": (160, {"s8": (20, 64), "s16": (10, 96)}),
    "test_vit_relpos": (160, {"s16": (10, 96)}),
}
SMALLER = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "num_heads": (1, 2, 4, 8)},
    "cait_xxs24_224": {"depth": 4},
}
"""Options for timm that make a dear model cheap without touching how it cuts its grid."""
REFUSED = {
    "swin_tiny_patch4_window7_224": (448, "224 pixels only"),
    "crossvit_tiny_240": (240, "stride, 17, must divide"),
    "pit_ti_224": (224, "not those of a stride"),
    "legacy_xception": (299, "288 or 304"),
    "eva02_tiny_patch14_224": (96, "84 or 98"),
}


def weights_of(name, folder):
    """Random weights of any timm model, saved."""
    torch.manual_seed(0)
    return save_weights(timm.create_model(name, num_classes=0), folder / "w.safetensors")


@pytest.mark.parametrize("name", WORK)
def test_tokens_lie_on_the_grid_row_by_row(name, tmp_path, monkeypatch):
    size, expected = WORK[name]
    make_smaller(monkeypatch, name, **SMALLER.get(name, {}))
    weights = weights_of(name, tmp_path)
    backbone = load_backbone(name, image_size=size, weights=weights)
    weights.unlink()  # pytest keeps its folders
    images = random_images(size, batch=3)
    # The same picture, with another corner: above on the right, below on the left.
    images[1:] = images[0]
    corner = size // 4
    images[1, :, :corner, -corner:] = 0
    images[2, :, -corner:, :corner] = 0
    tokens = backbone(images)
    assert {layer: (t.grid, t.patches.shape[1:]) for layer, t in tokens.items()} == {
        layer: ((side, side), (side * side, width)) for layer, (side, width) in expected.items()
    }
    for layer in tokens.values():
        assert layer.prefix.shape == (3, 1, layer.patches.shape[2])
        assert layer.patches.isfinite().all()
        side = layer.grid[0]
        moved = (layer.patches[1:] - layer.patches[0]).norm(dim=-1).reshape(2, side, side)
        (top, right), (bottom, left) = (divmod(int(m.argmax()), side) for m in moved)
        assert max(top, left) < side / 3
        assert min(right, bottom) > 2 * side / 3 - 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_does_not_fit_says_why(name, tmp_path):
    size, reason = REFUSED[name]
    weights = weights_of(name, tmp_path)
    with pytest.raises(SpgError, match=reason):
        load_backbone(name, image_size=size, weights=weights)(random_images(size, batch=1))
    weights.unlink()
