"""How much of the scores is each atom's, and how much of what sets images apart.

An atom's contribution is the sum of those to the map's part and to the detection's.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from spg_pipe.datasets.manifest import LABEL_NORMAL
from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import Batch
from spg_pipe.explain.explanation import explain
from spg_pipe.explain.measure import category_names
from spg_pipe.store.reader import FeatureStore


class Found(NamedTuple):
    """Of a layer's atoms (A,) float64 each; NaN of those that add to no score."""

    share: np.ndarray
    """Mean over images of |contribution| / Σ|contribution|."""
    share_apart: np.ndarray
    """The same of contributions less their mean over the category's normal images, mean over the
    other images. Without normal images, or without others: over all images, less the mean of all.
    What an atom adds to every image alike is no reason for any score."""


class Shares:
    """Contributions of a detector's atoms to the scores of some stores' images.

    They are kept, 4 bytes for each atom of the detector: a few KB an image.
    """

    def __init__(self, detector: Detector, stores: Sequence[FeatureStore]) -> None:
        self._detector, self._stores = detector, stores
        self._names = [np.array(names, object) for names in category_names(stores)]
        self._labels = [store.array("label") for store in stores]
        self._rows: dict[tuple[str, int], int] = {}
        self._kept: list[tuple[int, np.ndarray, np.ndarray]] = []

    def add(self, batch: Batch) -> None:
        """Take a batch of images apart."""
        spec = self._stores[batch.store].spec
        grids = {name: spec.layers[name].grid for name in batch.tokens}
        found = explain(self._detector, batch.tokens, grids, spec.backbone)
        for atom in found.atoms:
            self._rows.setdefault((atom.layer, atom.atom), len(self._rows))
        net = np.zeros((len(self._rows), len(batch.images)), np.float32)
        np.add.at(net, [self._rows[atom[:2]] for atom in found.atoms], found.contributions.T)
        self._kept.append((batch.store, batch.images, net.T))

    def of(self, layer: str, atoms: np.ndarray, category: str | None) -> Found:
        """The shares of a layer's atoms (A,) in a category, or in all images."""
        means = self._means[category]
        columns = [self._rows.get((layer, atom)) for atom in atoms.tolist()]
        return Found(
            *(
                np.array([np.nan if column is None else float(mean[column]) for column in columns])
                for mean in means
            )
        )

    @cached_property
    def _means(self) -> dict[str | None, Found]:
        """By category, and of all images (None): of all R atoms. Made once, when all is added."""
        names, normal, net = self._of_all()
        parts, apart = _parts(net), np.full_like(net, np.nan)
        own_rows = {name: names == name for name in set(names)}
        for own in own_rows.values():
            usual, others = own & normal, own & ~normal
            if not usual.any() or not others.any():
                usual = others = own
            apart[others] = _parts(net[others] - net[usual].mean(axis=0))
        return {
            name: Found(parts[own].mean(axis=0), np.nanmean(apart[own], axis=0))
            for name, own in {None: np.full(len(names), True), **own_rows}.items()
        }

    def _of_all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Category and whether it is normal (n,) of each image, and contributions (n, R)."""
        names = np.concatenate([self._names[store][images] for store, images, _ in self._kept])
        labels = np.concatenate([self._labels[store][images] for store, images, _ in self._kept])
        return names, labels == LABEL_NORMAL, np.concatenate([net for *_, net in self._kept])


def _parts(net: np.ndarray) -> np.ndarray:
    """|contribution| / Σ|contribution| of each image (n, R)."""
    size = np.abs(net)
    return size / np.maximum(size.sum(axis=1, keepdims=True), 1e-12)
