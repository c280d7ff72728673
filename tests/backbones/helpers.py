"""Random weights as a state dict on disk, and images, for backbones without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _registry
from torch import Tensor, nn

from spg_pipe.backbones import load_backbone


def random_model(name: str, seed: int = 0) -> nn.Module:
    """A timm model without classifier whose parameters all differ from their neutral values."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def save_weights(model: nn.Module, path: Path, **changes: Tensor) -> Path:
    """Write the model's state dict as safetensors, with changed or added tensors."""
    state = model.state_dict() | changes
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def make_smaller(patch: pytest.MonkeyPatch, name: str, **options: Any) -> None:
    """Let timm build its model `name` with `options`, narrower or shallower than published."""
    published = _registry._model_entrypoints[name]
    patch.setitem(
        _registry._model_entrypoints,
        name,
        lambda pretrained=False, **given: published(pretrained, **options, **given),
    )


def make_clip_shallower(patch: pytest.MonkeyPatch, blocks: int) -> None:
    """Let open_clip describe its models with so many blocks in either tower."""
    published = open_clip.get_model_config

    def shallow(name: str) -> dict[str, Any] | None:
        config = published(name)
        towers = ("vision_cfg", "text_cfg")
        return config and config | {name: config[name] | {"layers": blocks} for name in towers}

    patch.setattr(open_clip, "get_model_config", shallow)


def same_tokens(name: str, files: Sequence[Path], size: int, layer: str) -> None:
    """Assert that files of weights give the same tokens of random images."""
    images = random_images(size)
    options = {"image_size": size, "layers": [layer]}
    loaded = (load_backbone(name, weights=path, **options) for path in files)
    got, expected = (backbone(images)[layer] for backbone in loaded)
    torch.testing.assert_close(got.patches, expected.patches)
    torch.testing.assert_close(got.prefix, expected.prefix)


def random_images(size: int, batch: int = 2, seed: int = 0) -> Tensor:
    """(batch, 3, size, size) float32, standard normal."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
