"""The two rules that turn what guides say into maps and image scores, as artefacts name them.

`published` (docs/method.md §4) looks at the guides alone; `additive` (§8) adds up components.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from spg_pipe.artefacts.record import Record
from spg_pipe.decision.model import Decision, top_mean
from spg_pipe.recipe.params import DecisionParams, ImageScore

TOP_SHARE = 0.1
"""q of `top_mean`; this and the next two are choices of the project (docs/method.md §4)."""
LME_TAU = 1.0
"""τ of `log_mean_exp`."""
ALPHA = 0.5
"""Weight of the CLS probability in `mix`."""


class Additive(Record):
    """A fitted sum of components; patches hold log odds."""

    rule: Literal["additive"] = "additive"
    weights: DecisionParams
    """What the fit began with."""
    cross_fitted: bool
    """Images of the fit were judged by guides that were made without them."""
    decision: Decision


class Published(Record):
    """Probabilities of the guides; patches hold probabilities."""

    rule: Literal["published"] = "published"
    image_score: ImageScore


Rule = Annotated[Additive | Published, Field(discriminator="rule")]


def image_scores(
    maps: np.ndarray,
    cls: np.ndarray,
    image_score: ImageScore,
    *,
    top_share: float = TOP_SHARE,
    lme_tau: float = LME_TAU,
    alpha: float = ALPHA,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """One score an image by the published rule, from its blurred map and its CLS probability.

    Parameters
    ----------
    maps : (B, H, W) float32
    cls : (B,) float64
    image_score : str
        max; cls; top_mean, the mean of the ⌊q·pixels⌋ highest; log_mean_exp,
        b + τ·log(mean(exp((m − b)/τ))) with b the maximum; mix, α·CLS + (1 − α)·max.
    kept : (B, H, W) in [0, 1], optional
        How much each pixel counts. CLS has seen the whole image.

    Returns
    -------
    (B,) float32, or float64 where the CLS probability is in it
    """
    flat = maps.reshape(len(maps), -1)
    if kept is not None:
        flat = np.where(kept.reshape(flat.shape) > 0, flat, -np.inf)
    highest = flat.max(axis=1)
    if image_score == "max":
        return highest
    if image_score == "cls":
        return cls
    if image_score == "top_mean":
        return top_mean(maps, top_share, kept)
    if image_score == "log_mean_exp":
        raised = np.exp((flat - highest[:, None]) / lme_tau)
        spread = raised.mean(axis=1)
        if kept is not None:
            spread = np.average(raised, axis=1, weights=kept.reshape(flat.shape))
        return (highest + lme_tau * np.log(spread)).astype(np.float32)
    return alpha * cls + (1 - alpha) * highest
