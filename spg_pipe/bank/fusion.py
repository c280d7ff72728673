"""A bank beside a detector: each by what the normal images say of it (docs/method.md §9).

What guides find high on normal images says nothing of this product, and image scores that differ
much between normal images say little. No labels of the target are needed to know either.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from spg_pipe.artefacts.record import Figure, LayerName
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.bank.memory import Distances, MemoryBank
from spg_pipe.bank.normal_patches import KNOWN, TokensOf
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.model import Scale, top_mean
from spg_pipe.detector.judge import Judged, Patches, judge
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import BankParams, ScoreParams

ASSUMED = 1 / 8
"""Deviation of a detector's scores between normal images of one product, in sums of its weights:
what is assumed beside the images, as one more of them. The auxiliary images lie about 1 apart."""
_SMALLEST = 1e-6


class Footing(NamedTuple):
    """What normal images of one product say of a detector beside their bank."""

    levels: dict[LayerName, Scale]
    """Layer → mean of the guides' log odds, and how far their highest lie above it."""
    weight: Figure
    """Of the bank in the image score."""


def footing(
    detector: Detector, bank: MemoryBank, tokens_of: TokensOf, seen: BackboneSpec, *, batch: int
) -> Footing:
    """Judge the normal images that gave the bank its scale.

    `tokens_of` gives tokens, made as `seen` says, of at most `batch` of its images at a time.
    """
    rule, judged = detector.record.rule, list[Judged]()
    for start in range(0, len(bank.apart), batch):
        tokens, grids = tokens_of(bank.apart[start : start + batch])
        judged.append(judge(detector, tokens, grids, seen, rule))
    odds = {layer: torch.cat([part.patches[layer] for part in judged]) for layer in bank.grids}
    scores = np.concatenate([part.columns["score"] for part in judged])
    return footing_of(detector, bank, odds, scores)


def footing_of(
    detector: Detector,
    bank: MemoryBank,
    odds: Patches,
    scores: np.ndarray,
    kept: Kept | None = None,
) -> Footing:
    """From what the detector says of the normal images that gave the bank its scale.

    Parameters
    ----------
    odds : dict of layer → (k, h, w) float32
        The guides' log odds of their patches.
    scores : (k,) float64
        The detector's image scores.
    kept : Kept, optional
        Which of the images' pixels count.
    """
    levels = {}
    for layer, patches in odds.items():
        values = patches.numpy()
        counts = None if kept is None else kept.at(bank.grids[layer]).numpy()
        mean = float(values.mean() if counts is None else np.average(values, weights=counts))
        top = float(top_mean(values, bank.params.top_share, counts).mean())
        levels[layer] = Scale(mean, max(top - mean, _SMALLEST))
    return Footing(levels, bank_weight(detector, bank.params, scores, bank.tops))


def bank_weight(
    detector: Detector, params: BankParams, scores: np.ndarray, tops: np.ndarray
) -> float:
    """Of the bank beside the detector, by the deviations of both over normal images (k,)."""
    total = sum(term.weight for term in detector.decision.terms.values())
    guides, away = _deviation(scores, ASSUMED * total), _deviation(tops, 1.0)
    return params.weight * guides / away


def _deviation(values: np.ndarray, assumed: float) -> float:
    """Of values (n,), with one more that lies `assumed` away: a few images give a poor one."""
    return float(np.sqrt((assumed**2 + np.square(values - values.mean()).sum()) / len(values)))


def judge_fused(
    detector: Detector,
    distances: Distances,
    tokens: dict[str, torch.Tensor],
    seen: BackboneSpec,
    footings: Sequence[Footing],
    kept: Kept | None = None,
) -> Judged:
    """The bank's map where the guides confirm it, and its image score as one more addend.

    `distances` and `footings` are of the same B images; the rest is as for `judge`.
    """
    grids = {layer: (v.shape[1], v.shape[2]) for layer, v in distances.patches.items()}
    judged = judge(detector, tokens, grids, seen, detector.record.rule, kept)
    patches = {}
    for layer, away in distances.patches.items():
        scales = torch.tensor([each.levels[layer] for each in footings])[:, :, None, None]
        patches[layer] = confirmed(away, judged.patches[layer], scales[:, 0], scales[:, 1])
    share = np.array([each.weight for each in footings]) * distances.top
    columns = judged.columns | {"score": judged.columns["score"] + share, "share_bank": share}
    return replace(judged, patches=patches, columns=columns | {KNOWN: distances.known})


def confirmed(
    away: torch.Tensor,
    odds: torch.Tensor,
    mean: torch.Tensor | float,
    deviation: torch.Tensor | float,
) -> torch.Tensor:
    """A patch's distance from a bank and the guides' log odds as one value, of any shape.

    b·(1 + u²) + u: b is its distance, u the guides' log odds above their `mean` on normal images, 1
    where they are as high as their highest there. (u² only where u and b are above 0.)
    """
    above = (odds - mean) / deviation
    return away + away.clamp_min(0) * above.clamp_min(0).square() + above


def judge_alone(distances: Distances) -> Judged:
    """The bank's distance and nothing else."""
    return Judged(
        distances.patches,
        {"score": distances.top, "share_bank": distances.top, KNOWN: distances.known},
    )


def require_fusible(detector: Detector, score: ScoreParams | None = None) -> None:
    """Refuse, with an `SpgError`, to add a bank to the published rule."""
    if (rule := detector.rule(score).rule) != "additive":
        raise SpgError(
            "A bank is one more addend of the additive decision, and the score.rule is "
            f"{rule}. Use a detector with score.rule: additive, or the bank alone "
            "(--bank alone)."
        )
