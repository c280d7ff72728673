"""CNNs of timm: feature grids by stride."""

from __future__ import annotations

import pytest
import timm
import torch

from backbones.helpers import random_images
from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.packaged import PACKAGES
from spg_pipe.errors import SpgError
from spg_pipe.images.preprocess import Preprocess, preprocess


def test_efficientnet_lite0_gives_the_documented_grids_at_448():
    backbone = load_backbone("efficientnet-lite0", layers=["s32", "s8", "s16"])
    tokens = backbone(random_images(448, batch=1))
    shapes = [(name, layer.grid, layer.patches.shape) for name, layer in tokens.items()]
    assert shapes == [
        ("s32", (14, 14), (1, 196, 320)),
        ("s8", (56, 56), (1, 3136, 40)),
        ("s16", (28, 28), (1, 784, 112)),
    ]
    assert backbone.spec.patch_size == 32
    for layer in tokens.values():
        torch.testing.assert_close(layer.prefix[:, 0], layer.patches.mean(dim=1))


def test_the_features_are_those_of_timms_own_extractor():
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    reference.load_state_dict(PACKAGES["efficientnet-lite0"].state(), strict=False)
    images = random_images(128)
    with torch.no_grad():
        grids = reference(images)
    tokens = load_backbone("efficientnet-lite0", image_size=128, layers=["s8", "s32"])(images)
    for name, grid in (("s8", grids[2]), ("s32", grids[4])):
        expected = grid.flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens[name].patches, expected, rtol=1e-4, atol=1e-4)


def test_the_packaged_weights_recognise_a_cat():
    from skimage.data import chelsea

    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(PACKAGES["efficientnet-lite0"].state(), strict=True)
    half = (0.5, 0.5, 0.5)
    image = preprocess(chelsea(), Preprocess(224, "uint8", "bicubic", half, half))
    with torch.no_grad():
        logits = model(torch.from_numpy(image)[None])
    assert int(logits.argmax()) in (281, 282, 285)  # ImageNet: tabby, tiger cat, Egyptian cat


def test_the_defaults_need_no_download():
    spec = load_backbone("efficientnet-lite0").spec
    assert (spec.layers, spec.norm, spec.patch_size) == (("s8", "s16"), "pre", 16)
    assert spec.preprocess == Preprocess(448, "uint8", "bicubic", (0.5,) * 3, (0.5,) * 3)
    assert spec.weights_sha256.startswith("579344248a93e230")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 250}, "240 or 256"),
        ({"layers": ["s7"]}, "s2, s4, s8, s16, s32"),
        ({"layers": [4]}, "named by stride"),
        ({"norm": "post"}, "norm: pre"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(SpgError, match=message):
        load_backbone("efficientnet-lite0", **options)
