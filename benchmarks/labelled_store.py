"""A store of random tokens with labels and masks, for benchmarks of training."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from spg_pipe.backbones.base import LayerTokens
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.datasets.build import build_manifest
from spg_pipe.images.preprocess import Preprocess
from spg_pipe.recipe.data import Dataset
from spg_pipe.store.extract import extract
from spg_pipe.store.reader import FeatureStore

PATCH = 14
LAYER = "8"


class RandomPatches:
    """A backbone that costs nothing: fixed normal tokens, shifted by each patch's brightness."""

    def __init__(self, dim: int, size: int) -> None:
        self.side = size // PATCH
        generator = torch.Generator().manual_seed(0)
        self._base = torch.randn(self.side**2, dim, generator=generator)
        self._shift = torch.randn(dim, generator=generator)
        self.spec = BackboneSpec(
            alias="random",
            family="timm-vit",
            model="random",
            layers=(LAYER,),
            norm="post",
            patch_size=PATCH,
            preprocess=Preprocess(size, "float", "bilinear", (0.5,) * 3, (0.5,) * 3),
            pos_embed="native",
            prefix="cls",
            weights="none",
            weights_sha256="0" * 64,
            licence="none",
        )

    def __call__(self, images: torch.Tensor) -> dict[str, LayerTokens]:
        bright = torch.nn.functional.avg_pool2d(images.mean(1), PATCH).flatten(1)
        tokens = self._base + bright[..., None] * self._shift
        return {LAYER: LayerTokens(tokens, tokens.mean(1, keepdim=True), (self.side, self.side))}


def labelled_store(
    folder: Path, *, images: int, dim: int, size: int, seed: int = 0
) -> FeatureStore:
    """A store of `images` pictures at size², every second one with a rectangular defect."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        grey = rng.integers(0, 60, (size, size), dtype=np.uint8)
        kind = "dent" if number % 2 else "good"
        if number % 2:
            top, left = rng.integers(0, size // 2, 2)
            place = np.s_[top : top + size // 5, left : left + size // 4]
            grey[place] += 150
            mask = np.zeros_like(grey)
            mask[place] = 255
            _save(mask, folder / "raw" / "part" / "ground_truth" / kind / f"{number:04d}_mask.png")
        _save(grey, folder / "raw" / "part" / kind / f"{number:04d}.png")
    manifest = build_manifest(
        Dataset(name="random", layout="folder", root=folder / "raw", split="all")
    )
    return extract(manifest, RandomPatches(dim, size), folder / "random.zarr")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
