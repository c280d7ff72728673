"""What the claims of an audit are about, and what they are tested with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from spg_pipe.detector.model import Detector
from spg_pipe.explain.codes import Active, Code, dictionary_code, sae_code
from spg_pipe.guides.contrast import ClassSums, class_sums, direction, pursuit_steps
from spg_pipe.guides.layer import View
from spg_pipe.guides.model import unit
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.audit_dictionaries import (
    COMPONENTS,
    DICTIONARIES,
    OWN,
    SEEDED,
    UNTRAINED,
    dictionary,
)
from spg_pipe.study.audit_tables import Row

LayerView = tuple[str, View]
"""A layer, and what its guides look at."""
Directions = Mapping[LayerView, Tensor]
"""(D,): what a unit token is multiplied with."""


@dataclass(frozen=True)
class Case:
    """An auxiliary set and a seed of a recipe; all that is made of them is made once."""

    run: RecipeRun
    aux: str
    seed: int

    @cached_property
    def store(self) -> FeatureStore:
        """Of the auxiliary set."""
        return self._store(self.aux)

    @cached_property
    def targets(self) -> dict[str, FeatureStore]:
        """Of the directions from this auxiliary set."""
        ways = self.run.params.directions
        return {way.target: self._store(way.target) for way in ways if way.aux == self.aux}

    @cached_property
    def detector(self) -> Detector:
        """The recipe's."""
        return Detector.load(self.run.paths.detector(self.aux, self.seed))

    @cached_property
    def dictionaries(self) -> dict[str, SaeRun]:
        """The SAEs, and what they are compared with."""
        names = DICTIONARIES if self.seed == self.run.params.seeds[0] else SEEDED
        return {name: self.dictionary(name, self.seed) for name in names}

    @cached_property
    def sums(self) -> ClassSums:
        """Of the auxiliary set."""
        return class_sums(self.store, self.detector.record.detection)

    @cached_property
    def gaps(self) -> dict[LayerView, Tensor]:
        """δ of every layer and view: from normal to anomalous on the auxiliary set."""
        sums = self.sums
        return {
            (layer, view): direction(sums, layer, view)
            for layer in sums.layers
            for view in sums.views
        }

    @cached_property
    def normal(self) -> dict[str, Tensor]:
        """Layer → (D,) mean unit token of its normal patches."""
        return {
            layer: of.patches[:, 0].double().sum(0).div(of.counts[:, 0].double().sum()).float()
            for layer, of in self.sums.layers.items()
        }

    def dictionary(self, name: str, seed: int) -> SaeRun:
        """A dictionary as this seed, or another, gives it."""
        saes = SaeRun.load(checked_sae(self.run, self.store, self.aux, seed))
        return dictionary(name, self.store, saes, seed)

    def code(self, name: str, layer: str) -> Code:
        """A dictionary as a code of a layer's tokens.

        SAEs see tokens as they were trained to, all others unit tokens, and `COMPONENTS` what is
        left of these without the mean of the normal ones, as they are of centred tokens.
        """
        sae = self.dictionaries[name].layers[layer]
        if name in (OWN, UNTRAINED):
            settings = self.dictionaries[OWN].record.sae
            return sae_code(sae, settings.input_norm if settings else "none")
        code = dictionary_code(sae.atoms.detach(), sae.k)
        centre = self.normal[layer] if name == COMPONENTS else torch.zeros(())

        def centred(tokens: Tensor) -> Active:
            return code(unit(tokens) - centre)

        return centred

    def row(self, claim: str, target: str, dictionary: str) -> partial[Row]:
        """A row of the table about this, to be called with variant, n, figure, value, low, high."""
        return partial(Row, claim, self.aux, target, self.seed, dictionary)

    def _store(self, name: str) -> FeatureStore:
        return checked_store(self.run, find_dataset(self.run.params, name))


class Match(NamedTuple):
    """A direction matched as contrast guides are."""

    atoms: Tensor
    """(m,) int64: latents."""
    parts: Tensor
    """(m, D): what each atom adds to it, coefficient times atom."""


def matched(goal: Tensor, saes: SaeRun, layer: str, counts: Sequence[int]) -> list[Match]:
    """A direction (D,) matched with each of these numbers of atoms, by one pursuit."""
    atoms, alive = saes.layers[layer].atoms.detach(), torch.nonzero(~saes.dead[layer])[:, 0]
    steps, found = [*pursuit_steps(goal, atoms[alive], max(counts))], []
    for count in counts:
        step = steps[min(count, len(steps) - 1)]
        ids = alive[step.atom_ids]
        found.append(Match(ids, (step.codes[1] - step.codes[0])[:, None] * atoms[ids]))
    return found
