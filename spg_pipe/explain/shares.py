"""How much of the scores is each atom's: shares of the contributions, by category."""

from collections.abc import Sequence

import numpy as np

from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import Seen, category_names
from spg_pipe.explain.explanation import explain
from spg_pipe.store.reader import FeatureStore


class Shares:
    """Sums over images of |contribution| / Σ|contribution| of each atom of a detector.

    An atom's contribution is the sum of those to the map's part and to the detection's.
    """

    def __init__(self, detector: Detector, stores: Sequence[FeatureStore]) -> None:
        self._detector, self._stores, self._names = detector, stores, category_names(stores)
        self._sums: dict[str, np.ndarray] = {}
        self._images: dict[str, int] = {}
        self._rows: dict[tuple[str, int], int] = {}

    def add(self, seen: Seen) -> None:
        """Take a batch of images apart."""
        spec = self._stores[seen.store].spec
        grids = {name: spec.layers[name].grid for name in seen.tokens}
        found = explain(self._detector, seen.tokens, grids, spec.backbone)
        for atom in found.atoms:
            self._rows.setdefault((atom.layer, atom.atom), len(self._rows))
        net = np.zeros((len(seen.images), len(self._rows)))
        rows = [self._rows[atom.layer, atom.atom] for atom in found.atoms]
        np.add.at(net.T, rows, found.contributions.T)
        parts = np.abs(net)
        parts /= np.maximum(parts.sum(axis=1, keepdims=True), 1e-12)
        for image, part in zip(seen.images.tolist(), parts, strict=True):
            name = self._names[seen.store][image]
            self._sums[name] = self._sums.get(name, 0) + part
            self._images[name] = self._images.get(name, 0) + 1

    def of(self, layer: str, atoms: np.ndarray, category: str | None) -> np.ndarray:
        """Mean share (A,) float64 of a layer's atoms (A,); NaN of those that are none of the
        detector's, or add to no score."""
        names = list(self._sums) if category is None else [category]
        total = np.sum([self._sums[name] for name in names], axis=0)
        mean = total / sum(self._images[name] for name in names)
        rows = [self._rows.get((layer, atom)) for atom in atoms.tolist()]
        return np.array([np.nan if row is None else mean[row] for row in rows])
