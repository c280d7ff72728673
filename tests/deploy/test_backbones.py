"""Every family of backbones can be exported: random weights, the first blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from backbones.helpers import make_clip_shallower, make_smaller, random_model, save_weights
from torch import Tensor, nn

from spg_pipe.backbones import load_backbone
from spg_pipe.backbones.base import Backbone
from spg_pipe.backbones.openclip import build_tower
from spg_pipe.deploy import formats
from spg_pipe.deploy.resize import resized
from spg_pipe.images.preprocess import Preprocess, preprocess
from spg_pipe.predict.predictor import joined_tokens

TIMM = {
    "vit_tiny_patch16_dinov3_qkvb": {"image_size": 64, "norm": "post"},  # rotary positions
    "vit_small_patch14_dinov2": {"image_size": 56, "norm": "pre"},  # positions at another size
    "vit_base_patch16_siglip_224": {"image_size": 64, "norm": "pre"},
    "resnet18": {"image_size": 64, "layers": ["s8", "s16"]},
}


Input = Callable[[Tensor, Preprocess], Tensor]


def taken(image: Tensor, spec: Preprocess) -> Tensor:
    """Pixels (1, 3, S, S) of an image: `resized` would take three quarters of an export's time."""
    rows, columns = (torch.arange(spec.size) * side // spec.size for side in image.shape[1:3])
    return image[:, rows][:, :, columns].permute(0, 3, 1, 2) / 255


class Tokens(nn.Module):
    """An image's tokens, without a detector."""

    def __init__(self, backbone: Backbone, input_of: Input) -> None:
        super().__init__()
        self.backbone, self.input_of = backbone, input_of

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pixels = self.input_of(image, self.backbone.spec.preprocess)
        return tuple(joined_tokens(self.backbone(pixels))[0].values())


def require_exported(backbone: Backbone, path: Path, input_of: Input = taken) -> None:
    """Tokens of an upright and a wide image are PyTorch's."""
    layers, spec = len(backbone.spec.layers), backbone.spec.preprocess
    program = formats.traced(Tokens(backbone, input_of), spec.size)
    formats.write_onnx(program, layers, path, {})
    runtimes = [formats.read_onnx(path), formats.read_openvino(path)]
    for shape in ((130, 40), (30, 90)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        if input_of is resized:
            pixels = torch.from_numpy(preprocess(image, spec))[None]
        else:
            pixels = taken(torch.from_numpy(image)[None], spec)
        expected, _ = joined_tokens(backbone(pixels))
        for judge in runtimes:
            for ours, theirs in zip(judge(image), expected.values(), strict=True):
                np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * theirs.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("vit"):
        make_smaller(monkeypatch, name, depth=2)
        weights = save_weights(random_model(name), tmp_path / "weights.safetensors")
    else:
        weights = save_weights(_cnn(name), tmp_path / "weights.safetensors")
    options = {"layers": ["1", "2"]} | TIMM[name]
    backbone = load_backbone(name, weights=weights, **options)
    require_exported(backbone, tmp_path / "model.onnx")


def _cnn(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0).eval()


@pytest.mark.slow
def test_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_clip_shallower(monkeypatch, 2)
    torch.manual_seed(0)
    tower = build_tower(open_clip.get_model_config("ViT-B-32-quickgelu"))
    weights = save_weights(tower, tmp_path / "weights.safetensors")
    backbone = load_backbone(
        "open_clip:ViT-B-32-quickgelu/openai", weights=weights, image_size=64, layers=["1", "2"]
    )
    require_exported(backbone, tmp_path / "model.onnx", resized)  # 8 bits; floats: test_export.py
