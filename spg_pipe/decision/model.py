"""Standardised components → an anomaly map and an image score, each a sum (docs/method.md §8).

The map of a layer is Σ wᵢ·(vᵢ − μᵢ)/σᵢ over the components of its patches, averaged over layers.
The image score is bias + Σ shareᵢ, shareᵢ = wᵢ·(vᵢ − μᵢ)/σᵢ over components of the whole image: log
odds of "anomalous" on the auxiliary set. μ, σ, w and the bias come from the auxiliary set alone.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from spg_pipe.artefacts.record import Deviation, Figure, LayerName, Name, Record
from spg_pipe.decision.components import Components
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.recipe.params import MapWeights

MAP_TOP = "map_top"
"""The image component that is made from the map."""
COARSE = 4
"""`map_top` looks at maps of S/4: with the blur of 4 pixels nothing is lost."""


class Scale(NamedTuple):
    """Mean and deviation of a value over the auxiliary set."""

    mean: Figure
    deviation: Deviation


class Term(Record):
    """One addend of the image score."""

    weight: Figure
    mean: Figure
    deviation: Deviation


class Decision(Record):
    """Everything that turns components into maps and scores."""

    map_weights: MapWeights
    """Weights of the standardised components of a patch."""
    scales: dict[LayerName, dict[Name, Scale]]
    """Layer → component → scale; patches: as in `map_weights`; images: `image_` + component."""
    terms: dict[Name, Term]
    """Image component → its term. Those of weight 0 are left out."""
    bias: Figure
    top_share: Annotated[float, Field(gt=0, le=1)]
    """Share of a map, the highest, that `map_top` and `self_distance` are the means of."""

    def log_odds(self, layer: str, raw: Components) -> Tensor:
        """Log odds (B, N) of a layer's patches, from its components with F = 1."""
        values = {"guides": raw.guides[:, 0], "self_distance": raw.self_distance}
        total = torch.zeros_like(raw.self_distance)
        for name, weight in self.map_weights:
            if weight:
                scale = self.scales[layer][name]
                total += (weight / scale.deviation) * (values[name] - scale.mean)
        return total

    def image_values(self, layers: Iterable[tuple[str, Components]]) -> dict[str, np.ndarray]:
        """Image components (B,) that need no map, each standardised by layer, mean over layers.

        Parameters
        ----------
        layers : iterable of (layer, components with F = 1)
            A layer comes several times where tiles have several sides.
        """
        values: dict[str, list[np.ndarray]] = {}
        for layer, parts in layers:
            for name, raw in image_components(parts, self.top_share).items():
                scale = self.scales[layer].get(f"image_{name}")
                if scale is not None:
                    values.setdefault(name, []).append((raw - scale.mean) / scale.deviation)
        return {name: np.mean(each, axis=0) for name, each in values.items()}

    def shares(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What each component (B,) adds to the image score."""
        return {
            name: term.weight * (values[name] - term.mean) / term.deviation
            for name, term in self.terms.items()
        }


def image_components(raw: Components, share: float) -> dict[str, np.ndarray]:
    """Image components (B,) float64 of one layer that need no map, from components with F = 1.

    `self_distance`: mean of the highest share of the patches. `detection`: where the guides have
    it.
    """
    values = {"self_distance": top_mean(raw.self_distance.cpu().numpy(), share)}
    if raw.detection is not None:
        values["detection"] = raw.detection[:, 0].cpu().numpy()
    return {name: value.astype(np.float64) for name, value in values.items()}


def coarse_maps(grids: Mapping[str, Tensor], size: int) -> np.ndarray:
    """Blurred maps at a `COARSE`th of S, (B, S/4, S/4), of layer → (B, h, w)."""
    side = max(1, size // COARSE)
    return anomaly_maps(grids, size, at=(side, side))


def top_mean(maps: np.ndarray, share: float) -> np.ndarray:
    """Mean (B,) of the ⌊share·pixels⌋ highest pixels of maps (B, …), at least one."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, int(share * flat.shape[1]))
    return np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)


def top_weights(maps: np.ndarray, share: float) -> np.ndarray:
    """Weights (B, H, W) float64 whose sum over a map's pixels (B, H, W) is its `top_mean`."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, int(share * flat.shape[1]))
    weights = np.zeros(flat.shape)
    highest = np.argpartition(flat, -count, axis=1)[:, -count:]
    np.put_along_axis(weights, highest, 1 / count, axis=1)
    return weights.reshape(maps.shape)
