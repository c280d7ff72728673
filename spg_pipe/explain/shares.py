"""How much of the scores is each atom's, and how much of what differs between images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import Seen, category_names
from spg_pipe.explain.explanation import explain
from spg_pipe.store.reader import FeatureStore


class Found(NamedTuple):
    """Of a layer's atoms (A,) float64 each; NaN of those that add to no score."""

    share: np.ndarray
    """Mean over images of |contribution| / Σ|contribution|."""
    spread: np.ndarray
    """Deviation of the contribution over a category's images / Σ of all atoms'. An atom that adds
    the same to every image has a share of the score, but sets none apart."""


class Shares:
    """Sums over images of the contributions of a detector's atoms, by category.

    An atom's contribution is the sum of those to the map's part and to the detection's.
    """

    def __init__(self, detector: Detector, stores: Sequence[FeatureStore]) -> None:
        self._detector, self._stores = detector, stores
        self._names = [np.array(names, object) for names in category_names(stores)]
        self._rows: dict[tuple[str, int], int] = {}
        self._images: dict[str, int] = {}
        self._sums: dict[str, np.ndarray] = {}
        """(3, R): of the parts, of the contributions and of their squares."""

    def add(self, seen: Seen) -> None:
        """Take a batch of images apart."""
        spec, images = self._stores[seen.store].spec, seen.batch.images
        grids = {name: spec.layers[name].grid for name in seen.tokens}
        found = explain(self._detector, seen.tokens, grids, spec.backbone)
        for atom in found.atoms:
            self._rows.setdefault((atom.layer, atom.atom), len(self._rows))
        net = np.zeros((len(self._rows), len(images)))
        np.add.at(net, [self._rows[atom[:2]] for atom in found.atoms], found.contributions.T)
        parts = np.abs(net) / np.maximum(np.abs(net).sum(axis=0), 1e-12)
        values = np.stack([parts, net, net**2])
        for name in set(names := self._names[seen.store][images]):
            own = names == name
            self._images[name] = self._images.get(name, 0) + int(own.sum())
            self._sums[name] = self._sums.get(name, 0) + values[..., own].sum(axis=2)

    def of(self, layer: str, atoms: np.ndarray, category: str | None) -> Found:
        """The shares of a layer's atoms (A,) in a category, or in all of them."""
        names = list(self._sums) if category is None else [category]
        count = sum(self._images[name] for name in names)
        share = sum(self._sums[name][0] for name in names) / count
        around = sum(self._sums[n][2] - self._sums[n][1] ** 2 / self._images[n] for n in names)
        deviation = np.sqrt(np.maximum(around, 0) / count)
        spread = deviation / max(deviation.sum(), 1e-12)
        columns = [self._rows.get((layer, atom)) for atom in atoms.tolist()]
        return Found(
            *(
                np.array([np.nan if column is None else float(mean[column]) for column in columns])
                for mean in (share, spread)
            )
        )
