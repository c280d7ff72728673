"""The guides of one layer, as a detector keeps them: named pairs on the atoms that they use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spg_pipe.guides.model import TAU, effective_codes, lengths, unit
from spg_pipe.recipe.params import Detection

View = Detection | Literal["patches"]
"""What a pair of guides looks at: an image's detection feature, or every patch token."""


class SignedAtoms(NamedTuple):
    """A contrast pair on common atoms; a unit token x scores x·(anomaly − normal)."""

    atom_ids: Tensor
    """(m,) int64."""
    codes: Tensor
    """(2, m) float32 ≥ 0: normal, anomaly; of each atom one of them is 0."""

    def side(self, atoms: Tensor) -> Tensor:
        """(D,) anomaly minus normal guide of a dictionary (C, D)."""
        return (self.codes[1] - self.codes[0]) @ atoms[self.atom_ids]


class Pair(NamedTuple):
    """A normal and an anomaly guide."""

    normal: Tensor
    """(D,) guide vector g = e A."""
    anomaly: Tensor
    """(D,)"""
    codes: Tensor
    """(2, M) effective codes e of the layer's atoms: normal, anomaly."""

    @property
    def vectors(self) -> Tensor:
        """(2, D): normal, anomaly."""
        return torch.stack([self.normal, self.anomaly])


@dataclass(frozen=True)
class LayerGuides:
    """The pairs of one layer, with the atoms that they are made of."""

    pairs: Mapping[View, Pair]
    """Of every view that has guides; always of `patches`."""
    atom_ids: Tensor
    """(M,) int64: latents with a positive code in any guide."""
    atoms: Tensor
    """(M, D) their dictionary rows."""
    grid: tuple[int, int]
    """Patch grid that the guides were made on; scoring accepts any."""

    @cached_property
    def basis(self) -> Tensor:
        """(D, m) orthonormal columns that span the atoms, m = min(M, D).

        Of atoms that depend on each other they span a little more.
        """
        return torch.linalg.qr(self.atoms.t())[0]

    @classmethod
    def of_codes(
        cls,
        codes: Tensor,
        views: Sequence[View],
        atoms: Tensor,
        dead: Tensor,
        top_k: int | None,
        grid: tuple[int, int],
    ) -> "LayerGuides":
        """Keep what effective codes use of a dictionary (C, D).

        Parameters
        ----------
        codes : (2·views, C) raw codes
            A normal and an anomaly row for each view.
        dead : (C,) bool
        """
        effective = effective_codes(codes, dead, top_k)
        used = torch.nonzero((effective > 0).any(dim=0))[:, 0]
        vectors = (effective @ atoms).unflatten(0, (-1, 2))
        kept = effective[:, used].unflatten(0, (-1, 2))
        pairs = {
            view: Pair(vectors[row, 0], vectors[row, 1], kept[row].contiguous())
            for row, view in enumerate(views)
        }
        return cls(pairs, used, atoms[used].contiguous(), grid)

    @classmethod
    def of_contrast(
        cls, signed: Mapping[View, SignedAtoms], atoms: Tensor, grid: tuple[int, int]
    ) -> "LayerGuides":
        """Join contrast pairs over a dictionary (C, D)."""
        codes = atoms.new_zeros((len(signed), 2, len(atoms)))
        for row, pair in zip(codes, signed.values(), strict=True):
            row[:, pair.atom_ids] = pair.codes
        none_dead = torch.zeros(len(atoms), dtype=torch.bool)
        return cls.of_codes(codes.flatten(0, 1), tuple(signed), atoms, none_dead, None, grid)

    def coefficients(self, view: View, *, as_cosines: bool) -> Tensor:
        """How much each atom counts in the direction of a view, (M,) float64 of either sign.

        The direction is Σ coefficient · atom: `directions` of the same arguments, to rounding.
        """
        pair = self.pairs[view]
        codes = pair.codes.double()
        if as_cosines:
            codes = codes / (TAU * lengths(pair.vectors).double()[:, None])
        return codes[1] - codes[0]

    def directions(self, *, as_cosines: bool) -> dict[View, Tensor]:
        """View → (1, D): what a unit token is multiplied with, from normal to anomaly.

        With `as_cosines`, of trained guides, the difference of their cosines over τ; contrast
        guides are taken as long as they are.
        """
        found = {}
        for view, pair in self.pairs.items():
            normal, anomaly = unit(pair.vectors) / TAU if as_cosines else pair.vectors
            if bool((anomaly != normal).any()):
                found[view] = (anomaly - normal)[None]
        return found
