"""Sums of normal and of anomalous tokens by category and group of images, for their means."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.explain.groups import GROUPS, image_groups
from spg_pipe.guides.contrast import token_sums
from spg_pipe.guides.layer import View
from spg_pipe.guides.model import unit
from spg_pipe.recipe.params import Detection
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images


class Totals(NamedTuple):
    """Sums of one layer's unit tokens; row category · GROUPS + group, normal and anomalous."""

    patches: Tensor
    """(K · GROUPS, 2, D) float64; a patch is anomalous by the share of its pixels that are."""
    patch_counts: Tensor
    """(K · GROUPS, 2) float64: their weights."""
    features: Tensor
    """(K · GROUPS, 2, D) float64: of the images' detection features."""
    feature_counts: Tensor
    """(K · GROUPS, 2) float64"""


@dataclass(frozen=True)
class GroupSums:
    """What the class means of a labelled store are made of, by category and group of images."""

    dataset: str
    categories: tuple[str, ...]
    """K names, as in the store."""
    detection: Detection
    """Which feature of an image is summed."""
    rows: np.ndarray
    """(n,) int: each image's row in the sums."""
    labels: np.ndarray
    """(n,) int: 0 normal, 1 anomalous, 255 unknown."""
    taught: np.ndarray
    """(n,) bool: the image's mask is known."""
    layers: dict[str, Totals]

    @classmethod
    def of(cls, store: FeatureStore, detection: Detection = "cls") -> "GroupSums":
        """Empty sums for a store; several sides of tiled images come together in their layer."""
        names, category = np.unique(store.array("category").astype(object), return_inverse=True)
        layers = {}
        for key in store.spec.backbone.token_keys:
            rows, dim = len(names) * GROUPS, store.spec.layers[key.name].dim
            sums = [torch.zeros(rows, 2, *more, dtype=torch.float64) for more in ((dim,), ()) * 2]
            layers[key.layer] = Totals(*sums)
        return cls(
            dataset=store.spec.dataset,
            categories=tuple(str(name) for name in names),
            detection=detection,
            rows=category * GROUPS + image_groups(store),
            labels=store.array("label").astype(np.int64),
            taught=np.isin(np.arange(len(store)), labelled_images(store)),
            layers=layers,
        )

    def add(self, key: TokenKey, images: np.ndarray, tokens: Tensor, share: Tensor) -> None:
        """Add a batch of images: rows (B,) of the store, and their tokens (B, 1 + N, D) float32.

        `share` (B, N) float32 is the defective share of each patch's pixels.
        """
        known = torch.from_numpy(self.taught[images]).to(tokens.device)
        added = token_sums(tokens, share, known, self.detection)
        patches, counts, features = (values.cpu().double() for values in added)
        totals, rows = self.layers[key.layer], torch.from_numpy(self.rows[images])
        totals.patches.index_add_(0, rows, patches)
        totals.patch_counts.index_add_(0, rows, counts)
        for label in (0, 1):
            of_label = torch.from_numpy(self.labels[images] == label)
            totals.features[:, label].index_add_(0, rows[of_label], features[of_label])
            ones = torch.ones(int(of_label.sum()), dtype=torch.float64)
            totals.feature_counts[:, label].index_add_(0, rows[of_label], ones)

    def of_view(self, layer: str, view: View) -> tuple[Tensor, Tensor]:
        """Sums (K, GROUPS, 2, D) and counts (K, GROUPS, 2) of patches or detection features."""
        totals, shape = self.layers[layer], (len(self.categories), GROUPS)
        if view == "patches":
            sums, counts = totals.patches, totals.patch_counts
        else:
            sums, counts = totals.features, totals.feature_counts
        return sums.unflatten(0, shape), counts.unflatten(0, shape)

    def both_classes(self, view: View) -> list[int]:
        """Numbers of the categories that have normal and anomalous patches, or images."""
        counts = self.of_view(next(iter(self.layers)), view)[1].sum(dim=1)
        return torch.nonzero((counts > 0).all(dim=1))[:, 0].tolist()

    def direction(self, layer: str, view: View, category: int) -> Tensor:
        """(D,) float32 direction of a category alone that has both (docs/method.md §7)."""
        sums, counts = self.of_view(layer, view)
        total, count = sums[category].sum(dim=0), counts[category].sum(dim=0)
        normal, anomalous = unit(total / count[:, None])
        return (anomalous - normal).float()
