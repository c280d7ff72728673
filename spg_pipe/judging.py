"""A detector on a batch of tokens: what it says of patches and images, by either rule.

`published` (docs/method.md §4) looks at the guides alone; `additive` (§8) adds up components.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.decision.model import MAP_TOP, Decision, top_mean
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
    size: int,
    params: ScoreParams,
) -> Judged:
    """Score a batch of images by the rule of `params`.

    Parameters
    ----------
    tokens : dict of layer → (B, 1 + N, D) float32
    grids : dict of layer → (h, w)
    size : int
        S: side of the maps, pixels.

    Raises
    ------
    SpgError
        If the rule is `additive` and the detector has no decision.
    """
    with torch.inference_mode():
        if params.rule == "additive":
            odds, values = detector.log_odds(tokens, grids)
            return _add_up(detector.require_decision(), _on_cpu(odds), values, size, params.sigma)
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


def score_images(
    detector: Detector,
    tokens: Iterator[tuple[dict[str, Tensor], dict[str, tuple[int, int]]]],
    size: int,
    params: ScoreParams,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Maps (B, S, S) of S = `size` pixels and `Judged.columns` for batches of tokens."""
    for batch, grids in tokens:
        judged = judge(detector, batch, grids, size, params)
        additive = params.rule == "additive"
        maps = anomaly_maps(judged.patches, size, params.sigma, log_odds=additive)
        yield maps, judged.columns
