"""A detector on a batch of tokens: what it says of patches and images, by either rule.

`published` (docs/method.md §4) looks at the guides alone; `additive` (§8) adds up components.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import BackboneSpec, Tiles
from spg_pipe.decision.model import MAP_TOP, Decision, coarse_maps, top_mean
from spg_pipe.detector import Detector
from spg_pipe.maps import anomaly_maps
from spg_pipe.params import ScoreParams


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

    Of an image in tiles the additive rule judges each tile, as the detector learnt to judge single
    views, and the image is as anomalous as its worst tile: a defect of a few pixels is lost in the
    mean of a large image.

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
            if seen.tiles is None:
                return _add_up(detector.require_decision(), patches, values, size, params.sigma)
            views = _views(seen.tiles, seen)
            each = [detector.log_odds(*view.cut(tokens, grids))[1] for view in views]
            return _worst(detector.require_decision(), patches, views, each, size, params.sigma)
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
    return Judged(patches, _columns(decision, values))


def _columns(decision: Decision, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shares = decision.shares(values)
    total = decision.bias + np.sum(list(shares.values()), axis=0)
    return {"score": total} | {f"share_{name}": share for name, share in shares.items()}


@dataclass(frozen=True)
class _View:
    """A tile of an image at one of its sides, as shares of that side from 0 to 1."""

    layers: tuple[str, ...]
    """Names of the tokens at this side."""
    top: float
    left: float
    side: float

    def cut(
        self, tokens: dict[str, Tensor], grids: dict[str, tuple[int, int]]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
        """Tokens and grids of the tile alone, behind the whole image's prefix token."""
        parts, shapes = {}, {}
        for layer in self.layers:
            rows, columns = grids[layer]
            place = self.box(rows, columns)
            part = tokens[layer][:, 1:].unflatten(1, (rows, columns))[:, place[0], place[1]]
            shapes[layer] = (part.shape[1], part.shape[2])
            parts[layer] = torch.cat([tokens[layer][:, :1], part.flatten(1, 2)], dim=1)
        return parts, shapes

    def box(self, rows: int, columns: int) -> tuple[slice, slice]:
        """Where it lies in a grid or map of the whole image."""
        ends = self.top + self.side, self.left + self.side
        return (
            slice(round(self.top * rows), round(ends[0] * rows)),
            slice(round(self.left * columns), round(ends[1] * columns)),
        )


def _views(tiles: Tiles, seen: BackboneSpec) -> list[_View]:
    found = []
    for side in tiles.sides:
        layers = tuple(tiles.layer_at(layer, side) for layer in seen.layers)
        places = [start / side for start in tiles.starts(side, seen.patch_size)]
        found += [_View(layers, top, left, tiles.size / side) for top in places for left in places]
    return found


def _worst(
    decision: Decision,
    patches: dict[str, Tensor],
    views: list[_View],
    values: list[dict[str, np.ndarray]],
    size: int,
    sigma: float,
) -> Judged:
    """Each image's columns are those of the view with the highest score."""
    if MAP_TOP in decision.terms:
        maps = coarse_maps(patches, size, sigma)
        for view, found in zip(views, values, strict=True):
            rows, columns = view.box(*maps.shape[1:])
            found[MAP_TOP] = top_mean(maps[:, rows, columns], decision.top_share)
    each = [_columns(decision, found) for found in values]
    worst = np.argmax([columns["score"] for columns in each], axis=0)
    images = np.arange(len(worst))
    return Judged(
        patches, {name: np.stack([one[name] for one in each])[worst, images] for name in each[0]}
    )
