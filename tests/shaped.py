"""Stores whose tokens a test writes down itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tiny import TinyBackbone, extracted
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.store.reader import FeatureStore


class _Shaped(TinyBackbone):
    """One layer, `1`, of 2×3 tokens: those of the image i of a batch are `tokens(i)` (6, D)."""

    def __init__(self, tokens: Callable[[int], np.ndarray]) -> None:
        super().__init__(layers=("1",))
        self.tokens = tokens

    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        rows = [torch.from_numpy(np.asarray(self.tokens(i))).float() for i in range(len(images))]
        patches = torch.stack(rows)
        return {"1": LayerTokens(patches, patches.mean(dim=1, keepdim=True), (2, 3))}


def shaped_store(
    manifest: Manifest, path: Path, tokens: Callable[[int], np.ndarray], dtype: str = "float16"
) -> FeatureStore:
    """A store of the manifest's images in which row i has these tokens: a single batch."""
    images = len(manifest.table)
    options = {"batch_images": images, "shard_images": images, "dtype": dtype}
    return extracted(manifest, path, backbone=_Shaped(tokens), **options)
