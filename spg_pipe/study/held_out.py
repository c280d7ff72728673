"""Settings of contrast guides and the decision, judged on held-out parts of the auxiliary set.

No target is looked at. Each part in turn is judged by guides, scales and weights made from the
others; a part is a set of a union, a category, a kind of defect, or else a fold. One pass over the
store serves all candidates that share a dictionary and a number of atoms.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.components import Sides
from spg_pipe.decision.fit import fit_decision, measure
from spg_pipe.detector.coarse import coarse_masks, judge_rows
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import ClassSums, class_sums, direction, match
from spg_pipe.guides.layer import LayerGuides, SignedAtoms, View
from spg_pipe.recipe.params import DecisionParams, Detection
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

Progress = Callable[[int, int], None]

TOLERANCE = 0.005
"""A candidate must be better by this than an earlier one: smaller differences are chance."""


@dataclass(frozen=True)
class Candidate:
    """Settings to judge."""

    saes: SaeRun
    atoms: int
    decision: DecisionParams


PartFigures = dict[str, np.ndarray]
"""Held-out part → (candidates, 3) `FIGURES` by what was made from the others; NaN: undefined."""


def best(merits: np.ndarray, tolerance: float = TOLERANCE) -> int:
    """The candidate to take: the first of those that no other beats by a tolerance.

    An `SpgError` if there is nothing to judge by.
    """
    if np.isnan(merits).any():
        raise SpgError(
            "Nothing has anomalous and normal pixels at a quarter of the size, or images of both "
            "classes, so nothing can be chosen. Masks may be too thin: use a larger image_size."
        )
    return int(np.argmax(merits >= merits.max() - tolerance))


def held_out_parts(store: FeatureStore, sums: ClassSums) -> dict[str, np.ndarray]:
    """Name → (n,) bool of the images that are held out together.

    An `SpgError` if the set cannot be parted.
    """
    categories = store.array("category").astype(object)
    anomalous = sums.labels == 1
    taught = anomalous & (store.array("mask_state") == MaskState.GIVEN)

    def parts_by(names: np.ndarray, among: np.ndarray) -> dict[str, np.ndarray]:
        """Those that teach where defects are."""
        parts = {str(name): (names == name) & among for name in np.unique(names)}
        return {name: rows for name, rows in parts.items() if (rows & taught).any()}

    for names in (np.array([name.partition("/")[0] for name in categories]), categories):
        parts = parts_by(names, np.ones(len(store), bool))
        if len(parts) > 1:
            return parts
    # Those without a mask are held out with their kind: they teach about images.
    parts = parts_by(store.array("defect").astype(object), anomalous)
    if len(parts) < 2:
        parts = parts_by(np.array([f"fold {fold}" for fold in sums.folds]), anomalous)
    if len(parts) < 2:
        raise SpgError(
            f"{store.path} has {taught.sum()} anomalous images with a mask: too few to hold some "
            "out. Choosing needs at least two."
        )
    normal = np.flatnonzero(sums.labels == 0)
    for number, rows in enumerate(parts.values()):
        rows[normal[number :: len(parts)]] = True
    return parts


def judge_candidates(
    store: FeatureStore,
    candidates: Sequence[Candidate],
    detection: Detection,
    *,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> PartFigures:
    """Judge every candidate on every held-out part.

    Maps are compared with masks at a quarter of S: enough to rank settings, and sixteen times less
    to do. `progress` is told how many parts of all are done. An `SpgError` if the set cannot be
    parted, or without a part nothing is left to learn from.
    """
    sums = class_sums(store, detection, device)
    parts = held_out_parts(store, sums)
    makers = {(id(candidate.saes), candidate.atoms): candidate for candidate in candidates}
    sides = {key: _sides(store, maker, sums, parts) for key, maker in makers.items()}
    measured = {key: measure(store, each, device=device) for key, each in sides.items()}
    regions, judged = coarse_masks(store), PartFigures()
    for which, (part, rows) in enumerate(parts.items()):
        figures = []
        for candidate in candidates:
            seen, params = measured[id(candidate.saes), candidate.atoms], candidate.decision
            fit = fit_decision(seen, params, final=which, honest=which, among=~rows)
            figures.append(judge_rows(seen, regions, fit.decision, which, rows))
        judged[part] = np.stack(figures)
        progress(which + 1, len(parts))
    return judged


def _sides(
    store: FeatureStore, maker: Candidate, sums: ClassSums, parts: Mapping[str, np.ndarray]
) -> dict[str, Sides]:
    """By layer, directions (parts, D) made without each part.

    Zeros where a class is missing: such images differ in nothing that is added up. The basis is
    that of guides made from all: its atoms know the labels of the part, but a patch's distance to
    others of its image hardly depends on which atoms they are.
    """
    sides = {}
    for layer, shape in store.spec.layers.items():
        atoms, dead = maker.saes.layers[layer].atoms.detach().cpu(), maker.saes.dead[layer]
        pairs: dict[View, SignedAtoms] = {}
        directions: dict[View, Tensor] = {}
        for view in sums.views:
            everything, *without = [
                match(direction(sums, layer, view, chosen), atoms, dead, maker.atoms)
                for chosen in (None, *(~rows for rows in parts.values()))
            ]
            pairs[view] = everything
            directions[view] = torch.stack([pair.side(atoms) for pair in without])
        for part, row in zip(parts, directions["patches"], strict=True):
            if not bool(row.any()):
                raise SpgError(
                    f"{store.path}: without {part} no category has patches with and without a "
                    "defect, so nothing can be chosen on it. Add another auxiliary category."
                )
        sides[layer] = Sides(directions, LayerGuides.of_contrast(pairs, atoms, shape.grid).basis)
    return sides
