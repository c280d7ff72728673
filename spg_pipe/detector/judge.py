"""A detector on a batch of tokens: what it says of patches and images, by either rule.

`published` (docs/method.md §4) looks at the guides alone; `additive` (§8) adds up components.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.base import stand_in
from spg_pipe.backbones.spec import BackboneSpec, Prefix, Tiles
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import MAP_TOP, Decision, top_mean
from spg_pipe.detector.model import Detector
from spg_pipe.recipe.params import ScoreParams


def image_scores(maps: np.ndarray, cls: np.ndarray, params: ScoreParams) -> np.ndarray:
    """One score an image, from its blurred map and its CLS probability.

    Parameters
    ----------
    maps : (B, H, W) float32
    cls : (B,) float64
    params : ScoreParams
        `image_score`: max; cls; top_mean, the mean of the ⌊q·pixels⌋ highest; log_mean_exp,
        b + τ·log(mean(exp((m − b)/τ))) with b the maximum; mix, α·CLS + (1 − α)·max.

    Returns
    -------
    (B,) float32, or float64 where the CLS probability is in it
    """
    flat = maps.reshape(len(maps), -1)
    highest = flat.max(axis=1)
    if params.image_score == "max":
        return highest
    if params.image_score == "cls":
        return cls
    if params.image_score == "top_mean":
        return top_mean(maps, params.top_share)
    if params.image_score == "log_mean_exp":
        spread = np.exp((flat - highest[:, None]) / params.lme_tau).mean(axis=1)
        return (highest + params.lme_tau * np.log(spread)).astype(np.float32)
    return params.alpha * cls + (1 - params.alpha) * highest


@dataclass(frozen=True)
class Judged:
    """What a detector says of a batch of images."""

    patches: dict[str, Tensor]
    """Layer → (B, h, w) float32 on the CPU: probabilities, or log odds of rule `additive`."""
    columns: dict[str, np.ndarray]
    """`score` (B,) and what it is made of: with rule `published` score_cls and score_map_max, with
    rule `additive` a share_… for each component, which add up to the score less its bias."""


def judge(
    detector: Detector,
    tokens: dict[str, Tensor],
    grids: dict[str, tuple[int, int]],
    seen: BackboneSpec,
    params: ScoreParams,
) -> Judged:
    """Score a batch of images by the rule of `params`.

    Of an image in tiles the additive rule judges each tile alone, as the detector learnt to judge
    single views, and the image is as anomalous as its worst tile: a defect of a few pixels is lost
    in the mean of a large image. Patches are those of the image as a whole.

    Parameters
    ----------
    tokens : dict of layer → (B, 1 + N, D) float32
    grids : dict of layer → (h, w)
    seen : BackboneSpec
        How the tokens were made: the size of the maps, and the tiles.

    Raises
    ------
    SpgError
        If the rule is `additive` and the detector has no decision.
    """
    size = seen.preprocess.size
    with torch.inference_mode():
        if params.rule == "additive":
            odds, values = detector.log_odds(tokens, grids)
            patches = _on_cpu(odds)
            decision = detector.require_decision()
            if seen.tiles is None:
                return _add_up(decision, patches, values, size, params.sigma)
            each = []
            for tile in _tiles(seen.tiles, seen):
                alone, values = detector.log_odds(*tile.cut(tokens, grids))
                judged = _add_up(decision, _on_cpu(alone), values, seen.tiles.size, params.sigma)
                each.append(judged.columns)
            return Judged(patches, _worst(each))
        patches, cls = detector.probabilities(tokens, grids)
    return _published(_on_cpu(patches), cls.cpu().numpy(), size, params)


def _on_cpu(patches: dict[str, Tensor]) -> dict[str, Tensor]:
    return {layer: values.cpu() for layer, values in patches.items()}


def _published(
    patches: dict[str, Tensor], cls: np.ndarray, size: int, params: ScoreParams
) -> Judged:
    maps = anomaly_maps(patches, size, params.sigma)
    columns = {
        "score": image_scores(maps, cls, params),
        "score_cls": cls,
        "score_map_max": maps.reshape(len(maps), -1).max(axis=1),
    }
    return Judged(patches, columns)


def _add_up(
    decision: Decision,
    patches: dict[str, Tensor],
    values: dict[str, np.ndarray],
    size: int,
    sigma: float,
) -> Judged:
    if MAP_TOP in decision.terms:
        values = values | {MAP_TOP: decision.map_top(patches, size, sigma)}
    shares = decision.shares(values)
    total = decision.bias + np.sum(list(shares.values()), axis=0)
    columns = {f"share_{name}": share for name, share in shares.items()}
    return Judged(patches, {"score": total, **columns})


def _worst(each: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Each image's columns are those of the tile with the highest score."""
    worst = np.argmax([columns["score"] for columns in each], axis=0)
    images = np.arange(len(worst))
    return {name: np.stack([one[name] for one in each])[worst, images] for name in each[0]}


@dataclass(frozen=True)
class _Tile:
    """A tile of an image at one of its sides."""

    layers: tuple[str, ...]
    """Names of the tokens at this side."""
    side: int
    """Of the image, pixels."""
    top: int
    left: int
    size: int
    """Of the tile, pixels."""
    prefix: Prefix

    def cut(
        self, tokens: dict[str, Tensor], grids: dict[str, tuple[int, int]]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
        """Tokens and grids of the tile alone.

        A prefix token that stands for the model's own is made anew; CLS is the whole image's.
        """
        parts, shapes = {}, {}
        for layer in self.layers:
            rows, columns = grids[layer]
            patches = tokens[layer][:, 1:].unflatten(1, (rows, columns))
            part = patches[:, self._cells(self.top, rows), self._cells(self.left, columns)]
            shapes[layer] = (part.shape[1], part.shape[2])
            flat = part.flatten(1, 2)
            first = tokens[layer][:, :1] if self.prefix == "cls" else stand_in(flat, self.prefix)
            parts[layer] = torch.cat([first, flat], dim=1)
        return parts, shapes

    def _cells(self, start: int, cells: int) -> slice:
        pixels = self.side // cells
        return slice(start // pixels, (start + self.size) // pixels)


def _tiles(tiles: Tiles, seen: BackboneSpec) -> list[_Tile]:
    found = []
    for side in tiles.sides:
        layers = tuple(tiles.layer_at(layer, side) for layer in seen.layers)
        starts = tiles.starts(side, seen.patch_size)
        found += [
            _Tile(layers, side, top, left, tiles.size, seen.prefix)
            for top in starts
            for left in starts
        ]
    return found
