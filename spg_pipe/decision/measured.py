"""Components of a labelled store's images, by some sets of guides: what a decision is fitted on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import LABEL_UNKNOWN
from spg_pipe.decision.components import Components, components
from spg_pipe.decision.model import MAP_TOP, Decision, coarse_maps, top_mean
from spg_pipe.guides.layer import View
from spg_pipe.guides.model import to_grid
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import ordered_batches, sources_of


@dataclass(frozen=True)
class Measured:
    """Components of n images by m sets of guides, and what is known of the images."""

    layers: dict[str, Components]
    """guides (n, m, N), dissimilarity (n, N), image (n, m) each."""
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
            layer: to_grid(
                decision.grid(layer, raw.guides[chosen, which], raw.dissimilarity[chosen]),
                self.grids[layer],
            )
            for layer, raw in self.layers.items()
        }

    def image_values(
        self, decision: Decision, which: int, rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Image components (k,) of images (k,), by one of the sets of guides."""
        tops = []
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            maps = coarse_maps(self.log_odds(decision, which, part), self.size)
            tops.append(top_mean(maps, decision.top_share))
        chosen = torch.from_numpy(rows)
        layers = {
            layer: Components(
                raw.guides[chosen, which],
                raw.dissimilarity[chosen],
                {view: values[chosen, which, None] for view, values in raw.image.items()},
            )
            for layer, raw in self.layers.items()
        }
        return {MAP_TOP: np.concatenate(tops)} | decision.image_values(layers.items())


def measure(
    store: FeatureStore,
    directions: Mapping[str, Mapping[View, Tensor]],
    judges: np.ndarray | None = None,
    *,
    device: str = "cpu",
) -> Measured:
    """One pass over a labelled store; a few kilobytes an image, layer and set of guides are kept.

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
    parts: dict[str, list[Components]] = {layer: [] for layer in directions}
    with torch.inference_mode():
        for images, tokens in ordered_batches(sources_of(store, device, "none"), 8):
            chosen = None if judges is None else torch.from_numpy(judges[images]).to(device)
            for layer, views in sides.items():
                parts[layer].append(_picked(components(tokens[layer], views), chosen))
    categories = np.unique(store.array("category").astype(object), return_inverse=True)[1]
    return Measured(
        {layer: _joined(each) for layer, each in parts.items()},
        {layer: store.spec.layers[layer].grid for layer in directions},
        store.array("label").astype(np.int64),
        categories,
        store.image_size,
    )


def _picked(raw: Components, chosen: Tensor | None) -> Components:
    """On the CPU; of F sets of guides those (B, m) that are asked for."""

    def pick(values: Tensor) -> Tensor:
        if chosen is not None:
            values = values[torch.arange(len(values), device=values.device)[:, None], chosen]
        return values.cpu()

    guides = pick(raw.guides)
    image = {view: pick(v) for view, v in raw.image.items() if view != "dissimilarity"}
    alike = raw.image["dissimilarity"].cpu().expand(guides.shape[:2])
    return Components(guides, raw.dissimilarity.cpu(), {"dissimilarity": alike, **image})


def _joined(parts: Sequence[Components]) -> Components:
    return Components(
        torch.cat([part.guides for part in parts]),
        torch.cat([part.dissimilarity for part in parts]),
        {view: torch.cat([part.image[view] for part in parts]) for view in parts[0].image},
    )
