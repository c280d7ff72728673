"""A labelled store and guides → the Decision: scales, weights and bias of the auxiliary set.

Values of an auxiliary image come from guides that were made without it where the guides can be
made that way, so that the fit sees what it will meet on new images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import LABEL_UNKNOWN
from spg_pipe.decision.components import Components, components
from spg_pipe.decision.model import MAP_TOP, Decision, Scale, Term, coarse_maps, top_mean
from spg_pipe.errors import SpgError
from spg_pipe.guides.layer import View
from spg_pipe.recipe.params import DecisionParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of

RIDGE = 1.0
"""How firmly fitted weights are held to the recipe's proportions (docs/method.md §8)."""
_LOOSE = 1e-3
"""Ridge on the common scale of all weights: they stay finite where the classes separate wholly."""


@dataclass(frozen=True)
class Seen:
    """Raw values of every auxiliary image, of one layer, by m sets of guides."""

    guides: Tensor
    """(n, m, h, w)"""
    dissimilarity: Tensor
    """(n, h, w)"""
    image: dict[str, Tensor]
    """View, or `dissimilarity` → (n, m)."""


@dataclass(frozen=True)
class Labelled:
    """What is known of the auxiliary images."""

    labels: np.ndarray
    """(n,) int: 0 normal, 1 anomalous, 255 unknown."""
    categories: np.ndarray
    """(n,) int"""
    size: int
    """S: side of the maps, pixels."""

    @classmethod
    def of(cls, store: FeatureStore) -> "Labelled":
        """Of a store's images."""
        names = store.array("category").astype(object)
        numbers = np.unique(names, return_inverse=True)[1]
        return cls(store.array("label").astype(np.int64), numbers, store.image_size)

    def judged(self, among: np.ndarray) -> np.ndarray:
        """(n,) bool: of `among`, the labelled images of categories that have both classes."""
        rows = among & (self.labels != LABEL_UNKNOWN)
        both = np.zeros(len(rows), bool)
        for category in np.unique(self.categories[rows]):
            of_category = rows & (self.categories == category)
            if {0, 1} <= set(self.labels[of_category].tolist()):
                both |= of_category
        return both


class Fit(NamedTuple):
    """A decision and what was found on the way."""

    decision: Decision
    notes: list[str]
    """What could not be fitted, and why."""


def fit_decision(
    store: FeatureStore,
    directions: Mapping[str, Mapping[View, Tensor]],
    folds: np.ndarray | None,
    params: DecisionParams,
    *,
    device: str = "cpu",
) -> Fit:
    """Fit scales and weights on a labelled store, in one pass.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary set.
    directions : dict of layer → view → (1 + folds, D)
        Row 0: the final guides'. Row 1 + f: those made without the images of fold f.
    folds : (n,) int, optional
        Each image's fold; without it row 0 judges every image, also those it was made from.
    """
    judges = np.zeros((len(store), 2), np.int64)
    if folds is not None:
        judges[:, 1] = folds + 1
    seen = look(store, directions, judges, device=device)
    return fit_seen(seen, Labelled.of(store), params, honest=1)


def fit_seen(
    seen: dict[str, Seen],
    images: Labelled,
    params: DecisionParams,
    *,
    final: int = 0,
    honest: int = 0,
    among: np.ndarray | None = None,
) -> Fit:
    """Fit scales and weights on what was seen.

    Parameters
    ----------
    final, honest : int
        Whose guides the decision is for, and whose judge the images that weights are fitted on.
    among : (n,) bool, optional
        The images to learn from. Default: all.
    """
    among = np.ones(len(images.labels), bool) if among is None else among
    judged = images.judged(among)
    rows = judged if judged.any() else among
    scales = {
        layer: _scales(values, final, images.categories, among, rows)
        for layer, values in seen.items()
    }
    start = Decision(
        map_weights=params.map, scales=scales, terms={}, bias=0.0, top_share=params.top_share
    )
    own, others = (image_values(start, seen, which, images.size, rows) for which in (final, honest))
    asked = {name: weight for name, weight in params.image.model_dump().items() if weight > 0}
    prior = {name: weight for name, weight in asked.items() if name in own}
    notes = [
        f"no image component {name}: the guides have none for it"
        for name in asked
        if name not in prior
    ]
    if not prior:
        raise SpgError(
            f"The guides have nothing for the image components {', '.join(asked)}, so no image "
            "could be scored. Give decision.image.map_top or decision.image.dissimilarity a weight."
        )
    means = {name: _scale(own[name]) for name in prior}
    bias, fitted = 0.0, np.array(list(prior.values()))
    if judged.any():
        columns = [(others[name] - means[name].mean) / means[name].deviation for name in prior]
        values = np.stack(columns, axis=1)
        bias, fitted = fit_weights(values, images.labels[rows], fitted)
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
    from scipy.optimize import minimize

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


def look(
    store: FeatureStore,
    directions: Mapping[str, Mapping[View, Tensor]],
    judges: np.ndarray | None = None,
    *,
    device: str = "cpu",
) -> dict[str, Seen]:
    """Every image's components: a few kilobytes an image, layer and set of guides.

    Parameters
    ----------
    directions : dict of layer → view → (F, D)
    judges : (n, m) int, optional
        Which of the F each image is judged by. Default: all.
    """
    sides = {
        layer: {view: rows.to(device) for view, rows in views.items()}
        for layer, views in directions.items()
    }
    parts: dict[str, list[Seen]] = {layer: [] for layer in directions}
    with torch.inference_mode():
        for images, tokens in ordered_batches(sources_of(store, device, "none"), 8):
            chosen = None if judges is None else torch.from_numpy(judges[images]).to(device)
            for layer, views in sides.items():
                raw = components(tokens[layer], views)
                grid = store.spec.layers[layer].grid
                guides = _picked(raw.guides, chosen)
                shape = guides.shape[:2]
                parts[layer].append(
                    Seen(
                        guides.unflatten(-1, grid),
                        raw.dissimilarity.unflatten(-1, grid).cpu(),
                        {
                            view: values.cpu().expand(shape)
                            if view == "dissimilarity"
                            else _picked(values, chosen)
                            for view, values in raw.image.items()
                        },
                    )
                )
    return {layer: _joined(each) for layer, each in parts.items()}


def _joined(parts: Sequence[Seen]) -> Seen:
    return Seen(
        torch.cat([part.guides for part in parts]),
        torch.cat([part.dissimilarity for part in parts]),
        {view: torch.cat([part.image[view] for part in parts]) for view in parts[0].image},
    )


def _picked(values: Tensor, chosen: Tensor | None) -> Tensor:
    """(B, F, …) → (B, m, …) on the CPU, of the sets of guides that are asked for."""
    if chosen is not None:
        values = values[torch.arange(len(values), device=values.device)[:, None], chosen]
    return values.cpu()


def _scales(
    seen: Seen, which: int, categories: np.ndarray, among: np.ndarray, rows: np.ndarray
) -> dict[str, Scale]:
    """Of patches: each category's mean and deviation, averaged. Of images: over `rows`."""
    patches = {"guides": seen.guides[:, which], "dissimilarity": seen.dissimilarity}
    scales = {}
    for name, values in patches.items():
        each = [
            _scale(values[torch.from_numpy(among & (categories == category))].numpy())
            for category in np.unique(categories[among])
        ]
        scales[name] = Scale(*(float(np.mean(column)) for column in zip(*each, strict=True)))
    chosen = torch.from_numpy(rows)
    for view, image in seen.image.items():
        scales[f"image_{view}"] = _scale(image[chosen, which].numpy())
    return scales


def _scale(values: np.ndarray) -> Scale:
    """Mean and deviation; a constant counts as having deviation 1."""
    flat = values.astype(np.float64)
    deviation = float(flat.std())
    return Scale(float(flat.mean()), deviation if deviation > 1e-12 else 1.0)


def grids_of(
    decision: Decision, seen: dict[str, Seen], which: int, rows: np.ndarray
) -> dict[str, Tensor]:
    """Layer → (rows, h, w) log odds of some images."""
    chosen = torch.from_numpy(rows)
    return {
        layer: decision.grid(layer, values.guides[chosen, which], values.dissimilarity[chosen])
        for layer, values in seen.items()
    }


def image_values(
    decision: Decision,
    seen: dict[str, Seen],
    which: int,
    size: int,
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """Image components of the images that `rows` (n,) bool names."""
    tops = []
    for part in np.array_split(np.flatnonzero(rows), max(1, rows.sum() // 64)):
        maps = coarse_maps(grids_of(decision, seen, which, part), size)
        tops.append(top_mean(maps, decision.top_share))
    chosen = torch.from_numpy(rows)
    own = {
        layer: Components(
            values.guides[chosen, which],
            values.dissimilarity[chosen],
            {view: image[chosen, which, None] for view, image in values.image.items()},
        )
        for layer, values in seen.items()
    }
    return {MAP_TOP: np.concatenate(tops)} | decision.image_values(own.items())
