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
from spg_pipe.decision.kept import Kept
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

        Components have F = 1; a layer comes several times where tiles have several sides.
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
    kept = None if raw.kept is None else raw.kept.numpy()
    values = {"self_distance": top_mean(raw.self_distance.cpu().numpy(), share, kept)}
    if raw.detection is not None:
        values["detection"] = raw.detection[:, 0].cpu().numpy()
    return {name: value.astype(np.float64) for name, value in values.items()}


def coarse_maps(grids: Mapping[str, Tensor], size: int, kept: Kept | None = None) -> np.ndarray:
    """Blurred maps at a `COARSE`th of S, (B, S/4, S/4), of layer → (B, h, w)."""
    side = max(1, size // COARSE)
    return anomaly_maps(grids, size, at=(side, side), kept=kept)


def coarse_shares(kept: Kept, size: int) -> np.ndarray:
    """How much the pixels of `coarse_maps` count, (B, S/4, S/4) float32."""
    side = max(1, size // COARSE)
    return np.asarray(kept.at((side, side)).numpy())


def top_mean(maps: np.ndarray, share: float, kept: np.ndarray | None = None) -> np.ndarray:
    """Mean (B,) of the ⌊share·pixels⌋ highest pixels of maps (B, …), at least one.

    `kept` (B, …) in [0, 1] is how much each pixel counts: of what counts the same share is taken.
    The mean is 0 where nothing counts.
    """
    flat = maps.reshape(len(maps), -1)
    count = max(1, int(share * flat.shape[1]))
    highest = np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)
    if kept is None:
        return highest
    alike = (kept.reshape(flat.shape) == 1).all(axis=1)
    weighted = (top_weights(maps, share, kept).reshape(flat.shape) * flat).sum(axis=1)
    return np.where(alike, highest, weighted).astype(highest.dtype)


def top_weights(maps: np.ndarray, share: float, kept: np.ndarray | None = None) -> np.ndarray:
    """Weights (B, H, W) float64 whose sum over a map's pixels (B, H, W) is its `top_mean`."""
    flat = maps.reshape(len(maps), -1)
    if kept is not None:
        return _highest_kept(flat, share, kept.reshape(flat.shape)).reshape(maps.shape)
    count = max(1, int(share * flat.shape[1]))
    weights = np.zeros(flat.shape)
    highest = np.argpartition(flat, -count, axis=1)[:, -count:]
    np.put_along_axis(weights, highest, 1 / count, axis=1)
    return weights.reshape(maps.shape)


def _highest_kept(flat: np.ndarray, share: float, kept: np.ndarray) -> np.ndarray:
    """`top_weights` of pixels (B, P) that count by `kept` (B, P): the highest are taken until these
    add up to as much of all that counts as they would be of all pixels, the last in part."""
    order = np.argsort(-flat, axis=1, kind="stable")
    counts = np.take_along_axis(kept, order, axis=1).astype(np.float64)
    above = np.cumsum(counts, axis=1) - counts
    count = max(1, int(share * flat.shape[1]))
    wanted = count * counts.mean(axis=1, keepdims=True)
    taken = np.clip(wanted - above, 0, counts)
    weights = np.zeros(flat.shape)
    np.put_along_axis(weights, order, taken / np.maximum(wanted, 1e-300), axis=1)
    return weights
