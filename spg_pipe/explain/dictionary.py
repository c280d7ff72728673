"""A dictionary by itself: which atoms are alike, which of them other seeds learn as well, and a map
of it in two dimensions.

Dictionaries (C, D) have rows of unit length, as `SparseAutoencoder.atoms` gives them. Dead latents
are no atoms: their rows are what the training began with.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

MATCHED = 0.7
"""Cosine from which on two atoms of different dictionaries count as the same. Measured with 2,048
atoms of width 384: the best of as many random directions lies at 0.15 to 0.3, an atom's nearest
neighbour in its own trained dictionary at 0.2 to 0.5, so only the same atom comes nearer."""
_PERPLEXITY = 30
_STEPS = 500


class Nearest(NamedTuple):
    """The atoms most like each atom; an atom is not its own neighbour."""

    ids: np.ndarray
    """(C, count) int64, the most alike first. −1 where there are no more."""
    cosines: np.ndarray
    """(C, count) float32; NaN where there are no more."""


class Matches(NamedTuple):
    """Whether other seeds' dictionaries have an atom as well."""

    cosines: np.ndarray
    """(C, S) float32: the best cosine in each of S other dictionaries; NaN of dead atoms."""

    @property
    def reproduced(self) -> np.ndarray:
        """(C,) int64: in how many of the S the best cosine is at least `MATCHED`."""
        return np.count_nonzero(self.cosines >= MATCHED, axis=1)

    @property
    def mean(self) -> np.ndarray:
        """(C,) float32: mean over the S of the best cosine; NaN without others."""
        if not self.cosines.shape[1]:
            return np.full(len(self.cosines), np.nan, np.float32)
        return self.cosines.mean(axis=1)


def nearest_atoms(atoms: Tensor, count: int, dead: Tensor) -> Nearest:
    """The atoms with the largest cosine to each atom of the same dictionary.

    Parameters
    ----------
    atoms : (C, D) float32 of unit length
    count : int
        Neighbours of each, at most.
    dead : (C,) bool
        Atoms that neither have neighbours nor are any.
    """
    alive = _alive(dead)
    ids = np.full((len(atoms), count), -1, np.int64)
    cosines = np.full((len(atoms), count), np.nan, np.float32)
    kept = min(count, len(alive) - 1)
    if kept < 1:
        return Nearest(ids, cosines)
    values, rows = _search(atoms.numpy()[alive], atoms.numpy()[alive], kept + 1)
    # The atom itself comes first, but for atoms that are there twice.
    itself = rows == np.arange(len(alive))[:, None]
    itself[~itself.any(axis=1), -1] = True
    ids[alive, :kept] = alive[rows[~itself]].reshape(-1, kept)
    cosines[alive, :kept] = values[~itself].reshape(-1, kept)
    return Nearest(ids, cosines)


def matches(
    atoms: Tensor,
    others: Sequence[Tensor],
    dead: Tensor,
    others_dead: Sequence[Tensor],
) -> Matches:
    """How near each atom comes to one of each other dictionary, for instance of another seed.

    Parameters
    ----------
    atoms : (C, D) float32 of unit length
    others : S dictionaries (C', D)
    dead, others_dead : (C,) and S times (C',) bool
        Atoms that are not compared, and that nothing is compared with.
    """
    alive = _alive(dead)
    cosines = np.full((len(atoms), len(others)), np.nan, np.float32)
    for number, (other, other_dead) in enumerate(zip(others, others_dead, strict=True)):
        among = _alive(other_dead)
        if len(alive) and len(among):
            found, _ = _search(atoms.numpy()[alive], other.numpy()[among], 1)
            cosines[alive, number] = found[:, 0]
    return Matches(cosines)


def layout_2d(atoms: Tensor, dead: Tensor) -> np.ndarray:
    """A map of a dictionary: atoms that are alike lie together (t-SNE, from the first two axes).

    Distances between groups mean little. The same dictionary gives the same map.

    Parameters
    ----------
    atoms : (C, D) float32 of unit length
    dead : (C,) bool
        Atoms that have no place.

    Returns
    -------
    (C, 2) float32 in [0, 1]; NaN of dead atoms
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    alive = _alive(dead)
    places = np.full((len(atoms), 2), np.nan, np.float32)
    if len(alive) < 4:
        places[alive] = np.linspace(0, 1, len(alive))[:, None]
        return places
    perplexity = min(_PERPLEXITY, (len(alive) - 1) / 3)
    method = TSNE(2, perplexity=perplexity, init="pca", max_iter=_STEPS, random_state=0)
    with threadpool_limits(1):  # sums over threads come in another order each time
        found = method.fit_transform(atoms.numpy()[alive])
    low = found.min(axis=0)
    places[alive] = (found - low) / max(float((found.max(axis=0) - low).max()), 1e-12)
    return places


def _alive(dead: Tensor) -> np.ndarray:
    """Rows of the atoms that are not dead."""
    return np.flatnonzero(~dead.numpy())


def _search(queries: np.ndarray, among: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest products of each query and the rows that give them, the largest first."""
    import faiss

    index: Any = faiss.IndexFlatIP(among.shape[1])
    index.add(np.ascontiguousarray(among))
    values, rows = index.search(np.ascontiguousarray(queries), count)
    return values, rows
