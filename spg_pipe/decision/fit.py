"""A labelled store and guides → the Decision: scales, weights and bias of the auxiliary set.

Values of an auxiliary image come from guides that were made without it where the guides can be
made that way, so that the fit sees what it will meet on new images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from spg_pipe.datasets.manifest import LABEL_UNKNOWN
from spg_pipe.decision.components import Components, Sides, components
from spg_pipe.decision.model import (
    MAP_TOP,
    Decision,
    Scale,
    Term,
    coarse_maps,
    image_components,
    top_mean,
)
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import to_grid
from spg_pipe.recipe.params import DecisionParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of

RIDGE = 1.0
"""How firmly fitted weights are held to the recipe's proportions (docs/method.md §8)."""
_LOOSE = 1e-3
"""Ridge on the common scale of all weights: they stay finite where the classes separate wholly."""


@dataclass(frozen=True)
class Measured:
    """Components of n images by m sets of guides, and what is known of the images."""

    layers: dict[str, Components]
    """Layer → components with B = n and F = m."""
    grids: dict[str, tuple[int, int]]
    labels: np.ndarray
    """(n,) int: 0 normal, 1 anomalous, 255 unknown."""
    categories: np.ndarray
    """(n,) int"""
    size: int
    """S: side of the maps, pixels."""

    def judged(self, among: np.ndarray) -> np.ndarray:
        """(n,) bool: of `among`, the labelled images of categories that have both classes."""
        rows = among & (self.labels != LABEL_UNKNOWN)
        both = np.zeros(len(rows), bool)
        for category in np.unique(self.categories[rows]):
            of_category = rows & (self.categories == category)
            if {0, 1} <= set(self.labels[of_category].tolist()):
                both |= of_category
        return both

    def log_odds(self, decision: Decision, which: int, rows: np.ndarray) -> dict[str, Tensor]:
        """Layer → (k, h, w) of the patches of images (k,), by one of the sets of guides."""
        chosen = torch.from_numpy(rows)
        return {
            layer: to_grid(decision.log_odds(layer, raw.of(chosen, which)), self.grids[layer])
            for layer, raw in self.layers.items()
        }

    def coarse_maps(self, decision: Decision, which: int, rows: np.ndarray) -> np.ndarray:
        """Blurred maps of log odds (k, S/4, S/4) of images (k,), by one of the sets of guides."""
        return coarse_maps(self.log_odds(decision, which, rows), self.size)

    def image_values(
        self, decision: Decision, which: int, rows: np.ndarray, maps: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Image components (k,) of images (k,), by one of the sets of guides.

        `maps` (k, S/4, S/4) are those of `coarse_maps`, where they are known.
        """
        tops = []
        for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // 64)):
            some = self.coarse_maps(decision, which, rows[part]) if maps is None else maps[part]
            tops.append(top_mean(some, decision.top_share))
        chosen = torch.from_numpy(rows)
        layers = [(layer, raw.of(chosen, which)) for layer, raw in self.layers.items()]
        return {MAP_TOP: np.concatenate(tops)} | decision.image_values(layers)


def measure(
    store: FeatureStore,
    sides: Mapping[str, Sides],
    judges: np.ndarray | None = None,
    *,
    device: str = "cpu",
) -> Measured:
    """One pass over a labelled store; a few kilobytes an image, layer and set of guides are kept.

    Parameters
    ----------
    sides : dict of layer → Sides
        With directions (F, D).
    judges : (n, m) int, optional
        Which of the F each image is judged by. Default: all.
    """
    moved = {layer: each.to(device) for layer, each in sides.items()}
    grids = {layer: store.spec.layers[layer].grid for layer in sides}
    parts: dict[str, list[Components]] = {layer: [] for layer in sides}
    with torch.inference_mode():
        for images, tokens in ordered_batches(sources_of(store, device, "none"), 8):
            for layer, each in moved.items():
                raw = components(tokens[layer], each, grids[layer])
                if judges is not None:
                    raw = raw.of(torch.arange(len(images)), torch.from_numpy(judges[images]))
                parts[layer].append(raw.cpu())
    categories = np.unique(store.array("category").astype(object), return_inverse=True)[1]
    return Measured(
        {layer: _joined(each) for layer, each in parts.items()},
        grids,
        store.array("label").astype(np.int64),
        categories,
        store.image_size,
    )


def _joined(parts: Sequence[Components]) -> Components:
    detections = [part.detection for part in parts if part.detection is not None]
    return Components(
        torch.cat([part.guides for part in parts]),
        torch.cat([part.self_distance for part in parts]),
        torch.cat(detections) if len(detections) == len(parts) else None,
    )


class Fit(NamedTuple):
    """A decision and what was found on the way."""

    decision: Decision
    notes: list[str]
    """What could not be fitted, and why."""


def fit_decision(
    measured: Measured,
    params: DecisionParams,
    *,
    final: int = 0,
    honest: int = 0,
    among: np.ndarray | None = None,
) -> Fit:
    """Fit scales and weights.

    Parameters
    ----------
    final, honest : int
        Whose guides the decision is for, and whose judge the images that weights are fitted on.
    among : (n,) bool, optional
        The images to learn from. Default: all.
    """
    among = np.ones(len(measured.labels), bool) if among is None else among
    judged = measured.judged(among)
    chosen = judged if judged.any() else among
    rows = np.flatnonzero(chosen)
    scales = {
        layer: _scales(raw, final, measured.categories, among, chosen, params.top_share)
        for layer, raw in measured.layers.items()
    }
    start = Decision(
        map_weights=params.map, scales=scales, terms={}, bias=0.0, top_share=params.top_share
    )
    by_final, by_honest = (measured.image_values(start, which, rows) for which in (final, honest))
    asked = {name: weight for name, weight in params.image.model_dump().items() if weight > 0}
    prior = {name: weight for name, weight in asked.items() if name in by_final}
    notes = [
        f"no image component {name}: the guides have none for it"
        for name in asked
        if name not in prior
    ]
    if not prior:
        raise SpgError(
            f"The guides have nothing for the image components {', '.join(asked)}, so no image "
            "could be scored. Give decision.image.map_top or decision.image.self_distance a weight."
        )
    means = {name: _scale(by_final[name]) for name in prior}
    bias, fitted = 0.0, np.array(list(prior.values()))
    if judged.any():
        columns = [(by_honest[name] - means[name].mean) / means[name].deviation for name in prior]
        bias, fitted = fit_weights(np.stack(columns, axis=1), measured.labels[rows], fitted)
    else:
        notes.append(
            "no category has normal and anomalous images: the weights of the image score are the "
            "recipe's, and its zero means nothing"
        )
    terms = {
        name: Term(weight=float(weight), mean=means[name].mean, deviation=means[name].deviation)
        for name, weight in zip(prior, fitted, strict=True)
    }
    return Fit(start.model_copy(update={"terms": terms, "bias": float(bias)}), notes)


def fit_weights(
    values: np.ndarray, labels: np.ndarray, prior: np.ndarray, ridge: float = RIDGE
) -> tuple[float, np.ndarray]:
    """Logistic regression whose weights stay near a prior direction and above zero.

    Minimises the balanced mean log loss of b + Σ wᵢ·vᵢ plus ridge·‖w − s·prior‖² + 0.001·s², over
    b, w ≥ 0 and a common scale s ≥ 0, the prior scaled to unit length. A large ridge leaves the
    prior's proportions and fits b and s alone.

    Parameters
    ----------
    values : (n, K) float64
        Standardised components.
    labels : (n,) int in {0, 1}
    prior : (K,)

    Returns
    -------
    bias : float
    weights : (K,) float64
    """
    share = np.where(labels == 1, 0.5 / (labels == 1).sum(), 0.5 / (labels == 0).sum())
    sign = np.where(labels == 1, 1.0, -1.0)
    unit = prior / np.linalg.norm(prior)

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        bias, scale, weights = found[0], found[1], found[2:]
        margin = sign * (values @ weights + bias)
        away = weights - scale * unit
        pull = -share * sign / (1 + np.exp(np.minimum(margin, 500)))
        value = (share * np.logaddexp(0, -margin)).sum() + ridge * away @ away + _LOOSE * scale**2
        slope = np.r_[
            pull.sum(),
            -2 * ridge * away @ unit + 2 * _LOOSE * scale,
            pull @ values + 2 * ridge * away,
        ]
        return float(value), slope

    bounds = [(None, None), *[(0, None)] * (1 + len(prior))]
    found = minimize(loss, np.r_[0.0, 1.0, unit], jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(found[0]), found[2:]


def _scales(
    raw: Components,
    which: int,
    categories: np.ndarray,
    among: np.ndarray,
    chosen: np.ndarray,
    share: float,
) -> dict[str, Scale]:
    """Of patches: each category's mean and deviation, averaged. Of images: over `chosen`."""
    scales = {}
    for name, values in (("guides", raw.guides[:, which]), ("self_distance", raw.self_distance)):
        each = [
            _scale(values[torch.from_numpy(among & (categories == category))].numpy())
            for category in np.unique(categories[among])
        ]
        scales[name] = Scale(*(float(np.mean(column)) for column in zip(*each, strict=True)))
    rows = torch.from_numpy(np.flatnonzero(chosen))
    for name, image in image_components(raw.of(rows, which), share).items():
        scales[f"image_{name}"] = _scale(image)
    return scales


def _scale(values: np.ndarray) -> Scale:
    """Mean and deviation; a constant counts as having deviation 1."""
    flat = values.astype(np.float64)
    deviation = float(flat.std())
    return Scale(float(flat.mean()), deviation if deviation > 1e-12 else 1.0)
