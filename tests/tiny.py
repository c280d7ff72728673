"""A tiny backbone and tiny labelled images: everything that the core's tests run on.

Import as `from tiny import TinyBackbone, write_folder`; conftest.py has fixtures on top of these.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from layouts import painted, save, scanned, texture
from PIL import Image
from torch import Tensor

from spg_pipe.backbones.base import LayerTokens
from spg_pipe.backbones.spec import BackboneSpec, TokenKey
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.bank.normal_patches import TokensOf, read_normals, tokens_of_store
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.model import Term
from spg_pipe.decision.rules import Additive
from spg_pipe.detector.make import DetectorPlan
from spg_pipe.detector.model import Detector
from spg_pipe.explain.group_sums import GroupSums
from spg_pipe.guides.kinds import ContrastGuides, TrainedGuides
from spg_pipe.guides.layer import LayerGuides
from spg_pipe.guides.trained.trainer import Constants
from spg_pipe.images.preprocess import Preprocess
from spg_pipe.recipe.params import BankParams, MethodParams, SaeParams, ScoreParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.extract import Extraction, extract
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

SIZE = 32
"""S, pixels."""
SHAPES = {"1": (8, 12), "2": (16, 8)}
"""Layer → patch size in pixels and token width: grids of 4×4 and 2×2."""
SPEC = BackboneSpec(
    alias="tiny",
    family="timm-vit",
    model="tiny_model",
    layers=tuple(SHAPES),
    norm="post",
    patch_size=16,
    preprocess=Preprocess(SIZE, "float", "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    pos_embed="native",
    prefix="mean",
    weights="made for the tests",
    weights_sha256="0" * 64,
    licence="tiny weights: CC0",
)
HOW = [field.name for field in fields(Extraction)]


@cache
def _weights(patch: int, dim: int) -> Tensor:
    """Of a layer: made once, as an export can trace no random numbers."""
    generator = torch.Generator().manual_seed(patch)
    return torch.randn(3 * patch * patch, dim, generator=generator) / patch


class TinyBackbone:
    """Patches of pixels through fixed random matrices: two layers with different grids.

    `scale` multiplies the tokens; `fail_after` raises in that call, as a killed run would stop.
    """

    def __init__(self, scale: float = 1.0, fail_after: int | None = None, **changes: Any) -> None:
        self.spec = SPEC.model_copy(update=changes)
        self.scale = scale
        self.fail_after = fail_after
        self.calls = 0

    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        return {name: self._layer(images, *SHAPES[name]) for name in self.spec.layers}

    def _layer(self, images: Tensor, patch: int, dim: int) -> LayerTokens:
        pixels = F.unfold(images.cpu(), patch, stride=patch).transpose(1, 2)
        side = images.shape[-1] // patch
        patches = self.scale * torch.tanh(pixels @ _weights(patch, dim))
        return LayerTokens(patches, patches.mean(dim=1, keepdim=True), (side, side))


def write_folder(
    root: Path,
    categories: Sequence[str] = ("bolt", "nut"),
    *,
    good: int = 4,
    masked: int = 3,
    missing: int = 1,
    size: tuple[int, int] = (40, 48),
    seed: int = 0,
) -> Path:
    """Images in the `folder` layout: `masked` defects with masks, `missing` without."""
    for number, category in enumerate(categories):
        rng = np.random.default_rng([seed, number])
        base = root / category
        for i in range(good):
            save(texture(size, rng), base / "good" / f"{i:02d}.png")
        for i in range(masked + missing):
            image, mask = painted(texture(size, rng), rng)
            save(image, base / "dent" / f"{i:02d}.png")
            if i < masked:
                save(mask * np.uint8(255), base / "ground_truth" / "dent" / f"{i:02d}_mask.png")
    return root


def photograph(path: Path, size: tuple[int, int] = (20, 30), **options: Any) -> Path:
    """A noisy image of (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def manifest_of(root: Path, name: str = "parts") -> Manifest:
    """The manifest of a folder that `write_folder` wrote."""
    return scanned(name, "folder", root, licence="CC0")


def extracted(manifest: Manifest, path: Path, **options: Any) -> FeatureStore:
    """A store of the manifest's tokens: shards of 6 images, batches of 4."""
    backbone = options.pop("backbone", None) or TinyBackbone()
    given = {name: options.pop(name) for name in HOW if name in options}
    how = Extraction(**{"batch_images": 4, "shard_images": 6} | given)
    return extract(manifest, backbone, path, how, **options)


SAE = SaeParams(dict_size=32, k=4, epochs=3, batch_images=4, batch_tokens=None)
GUIDES = TrainedGuides(epochs=3)
CONSTANTS = Constants(batch_images=4)
METHOD = MethodParams()
SCORE = ScoreParams(rule="published")


def sae_params(**changes: Any) -> SaeParams:
    """`SAE` with some settings changed, validated."""
    return SaeParams.model_validate(SAE.model_dump() | changes)


def plan_of(saes: SaeRun, seed: int = 111, **changes: Any) -> DetectorPlan:
    """A detector of trained guides and the published rule, unless changed."""
    given = {"guides": GUIDES, "method": METHOD, "score": SCORE, "constants": CONSTANTS} | changes
    return DetectorPlan(saes, seed, **given)


def additive_plan(saes: SaeRun, seed: int = 1, **changes: Any) -> DetectorPlan:
    """A detector of contrast guides and the additive rule."""
    given = {"guides": ContrastGuides(atoms=6), "method": METHOD} | changes
    return DetectorPlan(saes, seed, **given)


def decided(detector: Detector, **changes: object) -> Detector:
    """With a changed decision."""
    rule = detector.record.rule
    assert isinstance(rule, Additive)
    decision = rule.decision.model_copy(update=changes)
    changed = rule.model_copy(update={"decision": decision})
    return replace(detector, record=detector.record.model_copy(update={"rule": changed}))


def weighted(detector: Detector) -> Detector:
    """With weights that count: on the tiny set the fit finds none above 0."""
    terms = {
        name: Term(weight=weight, mean=0.1, deviation=0.5)
        for name, weight in (("map_top", 1.3), ("detection", 0.7), ("self_distance", 0.9))
    }
    return decided(detector, terms=terms, bias=-0.4, top_share=0.2)


def vectors_of(guides: LayerGuides) -> Tensor:
    """(2·views, D): all guides of a layer."""
    return torch.cat([pair.vectors for pair in guides.pairs.values()])


def codes_of(guides: LayerGuides) -> Tensor:
    """(2·views, M): their codes."""
    return torch.cat([pair.codes for pair in guides.pairs.values()])


def keyed(values: dict[str, Any]) -> dict[TokenKey, Any]:
    """By key, of tokens without tiles."""
    return {TokenKey(name): value for name, value in values.items()}


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def flip(path: Path, byte: int = 100, bit: int = 1) -> None:
    """Flip a bit of a file, as a failing disk does."""
    data = bytearray(path.read_bytes())
    data[byte] ^= bit
    path.write_bytes(data)


def group_sums(store: FeatureStore, batch: int = 5) -> GroupSums:
    """Of all images of a store without tiles, in batches."""
    sums = GroupSums.of(store)
    for rows in np.array_split(np.arange(len(store)), range(batch, len(store), batch)):
        masks = torch.from_numpy(store.masks(rows)).float()[:, None]
        for layer in store.layers:
            share = F.adaptive_avg_pool2d(masks, store.spec.layers[layer].grid).flatten(1)
            sums.add(TokenKey(layer), rows, image_tokens(store, layer, rows), share)
    return sums


def bank_of_tokens(tokens_of: TokensOf, images: int, params: BankParams) -> MemoryBank:
    """A bank of images by what gives their tokens."""
    return MemoryBank.of(read_normals(tokens_of, images), tokens_of, SIZE, params)


def bank_of_store(store: FeatureStore, rows: np.ndarray, params: BankParams) -> MemoryBank:
    """A bank of some images of a store."""
    return bank_of_tokens(tokens_of_store(store, rows), len(rows), params)
