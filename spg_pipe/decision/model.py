"""Standardised components → an anomaly map and an image score, each a sum (docs/method.md §8).

The map of a layer is Σ wᵢ·(vᵢ − μᵢ)/σᵢ over the components of its patches, averaged over layers.
The image score is bias + Σ shareᵢ, shareᵢ = wᵢ·(vᵢ − μᵢ)/σᵢ over components of the whole image: log
odds of "anomalous" on the auxiliary set. μ, σ, w and the bias come from the auxiliary set alone.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from spg_pipe.backbones.spec import backbone_layer
from spg_pipe.decision.components import Components
from spg_pipe.decision.maps import anomaly_maps

MAP_TOP = "map_top"
"""The image component that is made from the map."""
COARSE = 4
"""`map_top` looks at maps of S/4: with the usual blur of 4 pixels nothing is lost."""


class Scale(NamedTuple):
    """Mean and deviation of a value over the auxiliary set."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Term:
    """One addend of the image score."""

    weight: float
    mean: float
    deviation: float

    def share(self, values: np.ndarray) -> np.ndarray:
        """What raw values (B,) add to the score."""
        return self.weight * (values - self.mean) / self.deviation


@dataclass(frozen=True)
class Decision:
    """Everything that turns components into maps and scores."""

    map_weights: dict[str, float]
    """`guides`, `dissimilarity`: weights of the standardised components of a patch."""
    scales: dict[str, dict[str, Scale]]
    """Layer → component → scale; patches: as in `map_weights`; images: `image_` + view."""
    terms: dict[str, Term]
    """Image component → its term. Those of weight 0 are left out."""
    bias: float
    top_share: float
    """Share of a map's pixels, the highest, that `map_top` is the mean of."""
    layers: dict[str, float] = field(default_factory=dict)
    """Layer → its weight; those that are not named have 1."""

    def layer_weight(self, name: str) -> float:
        """Weight of a layer, by the name of its tokens; the mean over all layers is 1."""
        every = [self.layers.get(layer, 1.0) for layer in self.scales]
        return self.layers.get(backbone_layer(name), 1.0) * len(every) / sum(every)

    def grid(self, name: str, guides: Tensor, dissimilarity: Tensor) -> Tensor:
        """Log odds of patches times the layer's weight, from raw values of one shape."""
        layer, share = backbone_layer(name), self.layer_weight(name)
        total = guides.new_zeros(guides.shape)
        for part, values in (("guides", guides), ("dissimilarity", dissimilarity)):
            if weight := share * self.map_weights[part]:
                scale = self.scales[layer][part]
                total += (weight / scale.deviation) * (values - scale.mean)
        return total

    def image_values(self, found: dict[str, Components]) -> dict[str, np.ndarray]:
        """Image components (B,) that need no map, each standardised by layer, mean over layers."""
        values: dict[str, list[np.ndarray]] = {}
        for name, parts in found.items():
            share = self.layer_weight(name)
            for view, raw in parts.image.items():
                scale = self.scales[backbone_layer(name)].get(f"image_{view}")
                if scale is not None:
                    one = (raw[:, 0].double().cpu().numpy() - scale.mean) / scale.deviation
                    values.setdefault(view, []).append(share * one)
        return {view: np.mean(each, axis=0) for view, each in values.items()}

    def map_top(self, grids: dict[str, Tensor], size: int, sigma: float) -> np.ndarray:
        """(B,) mean of the highest share of each blurred map, from grids of log odds."""
        return top_mean(coarse_maps(grids, size, sigma), self.top_share)

    def shares(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What each component (B,) adds to the image score."""
        return {name: term.share(values[name]) for name, term in self.terms.items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        content = asdict(self)
        if not self.layers:
            del content["layers"]
        content["scales"] = {
            layer: {name: list(scale) for name, scale in scales.items()}
            for layer, scales in self.scales.items()
        }
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Decision":
        """From `to_dict`'s content.

        Raises
        ------
        KeyError, TypeError
            If something is missing.
        """
        return cls(
            map_weights={
                name: float(content["map_weights"][name]) for name in ("guides", "dissimilarity")
            },
            scales={
                layer: {name: Scale(*scale) for name, scale in scales.items()}
                for layer, scales in content["scales"].items()
            },
            terms={name: Term(**term) for name, term in content["terms"].items()},
            bias=float(content["bias"]),
            top_share=float(content["top_share"]),
            layers={layer: float(w) for layer, w in content.get("layers", {}).items()},
        )


def coarse_maps(grids: dict[str, Tensor], size: int, sigma: float) -> np.ndarray:
    """Blurred maps at a `COARSE`th of S, (B, S/4, S/4), of layer → (B, h, w)."""
    side = max(1, size // COARSE)
    return anomaly_maps(grids, size, sigma, (side, side))


def top_mean(maps: np.ndarray, share: float) -> np.ndarray:
    """Mean (B,) of the ⌊share·pixels⌋ highest pixels of maps (B, H, W), at least one."""
    flat = maps.reshape(len(maps), -1)
    count = max(1, int(share * flat.shape[1]))
    return np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)
