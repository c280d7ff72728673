"""General and specific factors: what each atom of a detector adds to the gap between the anomalous
and the normal tokens of each category.

A unit token scores Σ coefficient · (token · atom), so the difference of the mean scores of a
category's anomalous and normal patches (or images) is a sum over atoms, exactly. An atom that adds
to it in all categories is a general factor, one that adds in a few of them a specific one.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import xlogy
from torch import Tensor

from spg_pipe.decision.rules import Additive
from spg_pipe.detector.model import Detector
from spg_pipe.explain.group_sums import GroupSums
from spg_pipe.explain.groups import ENDS, GROUPS, drawn, full_name
from spg_pipe.explain.parts import DETECTION, MAP_GUIDES, coefficients_of
from spg_pipe.guides.contrast import match, signed_pursuit
from spg_pipe.guides.layer import View
from spg_pipe.guides.model import unit
from spg_pipe.recipe.params import GuideParams
from spg_pipe.sae.run import SaeRun

GENERAL = 0.8
"""Generality from which on an atom is a general factor. An atom that adds the same share in m of K
categories has log m/log K: at least 0.8 is 5 of 6, 6 of 9, or all of up to 4."""
ROUNDS = 300
RANDOM = 2048
"""Random directions that a control chooses its atoms from."""
AT_RANDOM = GuideParams().atoms
"""Atoms of a layer that the control uses, at most, also where trained guides have hundreds."""
_DRAWS = 8
_KEYS = ["component", "layer", "atom", "category"]


@dataclass(frozen=True)
class Factors:
    """What a detector's atoms are worth in each category."""

    table: pd.DataFrame
    """A row for each component, layer, atom and category (of several stores with the dataset's name
    in front). `coefficient`: the detector's. `contribution` (with `_low`, `_high`): what the atom
    adds to the mean log odds of the category's anomalous patches (`map_guides`) or images
    (`detection`) over those of its normal ones. `share`: of Σ|contribution| of the component in the
    category. `pursuit`: the coefficient in contrast guides of this category alone, 0 where they do
    without the atom. Atoms of those guides that the detector does without are 0 in all else."""
    generality: pd.DataFrame
    """A row for each component, layer and atom of the detector: `generality` (with `_low`,
    `_high`), `categories` that it adds to, mean |share| (`weight`), and `factor`: general,
    specific, unclear where the interval holds `GENERAL`, or none where it adds to no category."""
    shares: pd.DataFrame
    """A row for each component: `general`, which part of Σ|contribution| general atoms have, mean
    over categories (with `_low`, `_high`); `general_random`, the same where the same direction is
    written with random atoms: what comes from the direction, whatever the dictionary (the mean of
    8 draws; `_low` and `_high` the lowest and the highest of them); `general_atoms` of `atoms`;
    `categories`; `net`, the gap by Σ|contribution|, mean over categories: 1 where no atom works
    against another."""


class _Atoms(NamedTuple):
    """A layer's atoms that a component uses."""

    layer: str
    ids: np.ndarray
    """(M,) int64"""
    coefficients: np.ndarray
    """(M,) float64"""
    rows: Tensor
    """(M, D) float64: the dictionary's."""
    scale: float
    """What a unit of a token's score adds to the log odds."""


class _Category(NamedTuple):
    """A category of a store that has both classes."""

    sums: GroupSums
    number: int
    name: str
    """With the dataset's in front where there are several stores."""


@dataclass(frozen=True)
class _Part:
    """A component: its atoms, layer after layer, and the categories that have both classes."""

    component: str
    view: View
    atoms: Sequence[_Atoms]
    categories: Sequence[_Category]

    @property
    def names(self) -> pd.DataFrame:
        """A row for each of all M atoms."""
        rows = [
            pd.DataFrame({"layer": each.layer, "atom": each.ids, "coefficient": each.coefficients})
            for each in self.atoms
        ]
        names = pd.concat(rows, ignore_index=True)
        names.insert(0, "component", self.component)
        return names

    def contributions(self, rounds: int) -> np.ndarray:
        """(1 + rounds, K, M) float64: as the data are, then with groups of images drawn anew."""
        of_categories = drawn(GROUPS, rounds, len(self.categories))
        weights = np.concatenate([np.ones((1, *of_categories.shape[1:])), of_categories])
        return np.concatenate([self._of_layer(each, weights) for each in self.atoms], axis=2)

    def _of_layer(self, atoms: _Atoms, weights: np.ndarray) -> np.ndarray:
        gains = atoms.scale * atoms.coefficients * atoms.rows.t().numpy()
        found = []
        for number, (sums, category, _) in enumerate(self.categories):
            tokens, counts = (
                each[category].numpy() for each in sums.of_view(atoms.layer, self.view)
            )
            total = np.einsum("rg,gcm->rcm", weights[:, number], tokens @ gains)
            with np.errstate(invalid="ignore"):  # a draw may lack a class
                means = total / (weights[:, number] @ counts)[..., None]
            found.append(means[:, 1] - means[:, 0])
        return np.stack(found, axis=1)

    def at_random(self, seed: int) -> "_Part":
        """The same directions written with atoms of a dictionary of random directions."""
        generator = torch.Generator().manual_seed(seed)
        atoms = []
        for each in self.atoms:
            dictionary = unit(torch.randn(RANDOM, each.rows.shape[1], generator=generator))
            goal = torch.from_numpy(each.coefficients) @ each.rows
            pair = signed_pursuit(goal, dictionary, min(len(each.ids), AT_RANDOM))
            signed = (pair.codes[1] - pair.codes[0]).double().numpy()
            rows = dictionary[pair.atom_ids].double()
            atoms.append(_Atoms(each.layer, pair.atom_ids.numpy(), signed, rows, each.scale))
        return replace(self, atoms=atoms)


def measure_factors(detector: Detector, stores: Sequence[GroupSums], saes: SaeRun) -> Factors:
    """General and specific factors of a detector over the categories of labelled stores.

    Categories without both classes are left out; without any the tables are empty. One category
    says nothing of generality: only `table` is of a single one. `stores` have the detector's layers
    and detection feature, `saes` are those of the detector.
    """
    views: dict[str, View] = {MAP_GUIDES: "patches", DETECTION: detector.record.detection}
    tables, generalities, shares = [], [], []
    for component, view in views.items():
        atoms = _atoms(detector, component, view)
        known = _known(stores, view)
        if atoms and known:
            part = _Part(component, view, atoms, known)
            values = part.contributions(ROUNDS)
            tables.append(_table(part, values, _alone(part, detector, saes)))
            if len(known) > 1:
                of_atoms, share = _generality(part, values)
                generalities.append(of_atoms)
                shares.append(share)
    none = [pd.DataFrame()]
    return Factors(
        *(pd.concat(each or none, ignore_index=True) for each in (tables, generalities, shares))
    )


def generality(shares: np.ndarray) -> np.ndarray:
    """How evenly atoms add to categories: the entropy of their shares over log K, in [0, 1].

    Only what is above 0 counts: an atom that works against the gap of a category is no factor of
    it. 1: the same share in each category; 0: in a single one; NaN: in none, or if K < 2.

    Parameters
    ----------
    shares : (…, K, M)
        Of each category's Σ|contribution|, so that a category with a large gap does not outweigh
        the others.

    Returns
    -------
    (…, M)
    """
    above = np.clip(shares, 0, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = above / above.sum(axis=-2, keepdims=True)
        return -xlogy(parts, parts).sum(axis=-2) / np.log(shares.shape[-2])


def _known(stores: Sequence[GroupSums], view: View) -> list[_Category]:
    found = []
    for sums in stores:
        for number in sums.both_classes(view):
            name = full_name(sums.dataset, sums.categories[number], alone=len(stores) == 1)
            found.append(_Category(sums, number, name))
    return found


def _atoms(detector: Detector, component: str, view: View) -> list[_Atoms]:
    found = []
    for layer, guides in detector.layers.items():
        if view not in guides.pairs:
            continue
        published = not isinstance(detector.record.rule, Additive)
        coefficients = coefficients_of(detector, guides, view, published=published).numpy()
        used = np.flatnonzero(coefficients)
        ids, rows = guides.atom_ids.numpy()[used], guides.atoms.double()[torch.from_numpy(used)]
        scale = _scale(detector, component, layer)
        if len(used) and scale:
            found.append(_Atoms(layer, ids, coefficients[used], rows, scale))
    return found


def _scale(detector: Detector, component: str, layer: str) -> float:
    """Of the map's log odds, or the image's; a layer's part of the mean over layers."""
    rule, layers = detector.record.rule, len(detector.layers)
    if not isinstance(rule, Additive):
        return 1 / layers
    decision, scales = rule.decision, rule.decision.scales[layer]
    if component == MAP_GUIDES:
        return decision.map_weights.guides / scales["guides"].deviation / layers
    having = f"image_{DETECTION}"
    if DETECTION not in decision.terms or having not in scales:
        return 0.0
    term, held = decision.terms[DETECTION], sum(having in of for of in decision.scales.values())
    return term.weight / term.deviation / scales[having].deviation / held


def _alone(part: _Part, detector: Detector, saes: SaeRun) -> pd.DataFrame:
    """Coefficients of guides of each category alone, by pursuit over the whole dictionary."""
    guides = detector.record.guides
    count = guides.atoms if guides.kind == "contrast" else AT_RANDOM
    found = []
    for each, category in itertools.product(part.atoms, part.categories):
        goal = category.sums.direction(each.layer, part.view, category.number)
        table = saes.layers[each.layer].atoms.detach().cpu()
        pair = match(goal, table, saes.dead[each.layer], count)
        signed = (pair.codes[1] - pair.codes[0]).double().numpy()
        row = pd.DataFrame({"atom": pair.atom_ids.numpy(), "pursuit": signed})
        found.append(row.assign(component=part.component, layer=each.layer, category=category.name))
    return pd.concat(found, ignore_index=True)


def _table(part: _Part, values: np.ndarray, alone: pd.DataFrame) -> pd.DataFrame:
    """`Factors.table` of a component."""
    names, (low, high) = part.names, _interval(values)
    shares = _shares(values[0])
    rows = [
        names.assign(
            category=category.name,
            contribution=values[0, number],
            contribution_low=low[number],
            contribution_high=high[number],
            share=shares[number],
        )
        for number, category in enumerate(part.categories)
    ]
    table = pd.concat(rows, ignore_index=True).merge(alone, how="outer", on=_KEYS).fillna(0.0)
    return table[[*_KEYS, *table.columns.drop(_KEYS)]]


def _generality(part: _Part, values: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`Factors.generality` and `Factors.shares` of a component."""
    shares = _shares(values)
    spread, size = generality(shares), np.abs(shares)
    low, high = _interval(spread)
    kinds = [np.isnan(spread[0]), low >= GENERAL, high < GENERAL]
    of_atoms = part.names.assign(
        generality=spread[0],
        generality_low=low,
        generality_high=high,
        categories=np.count_nonzero(shares[0] > 0, axis=0),
        weight=size[0].mean(axis=0),
        factor=np.select(kinds, ["none", "general", "specific"], "unclear"),
    )
    general = _general(shares)
    controls = (part.at_random(seed).contributions(0) for seed in range(_DRAWS))
    at_random = [float(_general(_shares(each))[0]) for each in controls]
    low, high = _interval(general)
    summary = {
        "component": part.component,
        "general": general[0],
        "general_low": low,
        "general_high": high,
        "general_random": float(np.mean(at_random)),
        "general_random_low": min(at_random),
        "general_random_high": max(at_random),
        "general_atoms": int((spread[0] >= GENERAL).sum()),
        "atoms": len(of_atoms),
        "categories": len(part.categories),
        "net": shares[0].sum(axis=1).mean(),
    }
    return of_atoms, pd.DataFrame([summary])


def _general(shares: np.ndarray) -> np.ndarray:
    """(…) of shares (…, K, M): what general atoms have of Σ|contribution|, mean over categories."""
    of_atoms = np.abs(shares) * (generality(shares) >= GENERAL)[..., None, :]
    return np.asarray(of_atoms.sum(axis=-1).mean(axis=-1))


def _shares(values: np.ndarray) -> np.ndarray:
    """Contributions (…, K, M) by Σ|contribution| of their category."""
    with np.errstate(invalid="ignore"):  # a draw may lack a class
        return values / np.abs(values).sum(axis=-1, keepdims=True)


def _interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the middle 95 % of all rows but the first lie; draws without a class do not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but NaN gives NaN
        low, high = np.nanquantile(draws[1:], ENDS, axis=0)
    return low, high
