"""The figure of general and specific factors."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from spg_pipe.explain.factors import Factors, measure_factors
from spg_pipe.report.factors import MOST_ATOMS, factors_figure
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore


def made_up(atoms: int) -> Factors:
    """Atoms of falling generality in three categories, one with a name that XML would not take."""
    names = ["bolt", "nut", "<b>&$x$"]
    keys = [(str(1 + a % 2), a, name) for a in range(atoms) for name in names]
    table = pd.DataFrame(keys, columns=["layer", "atom", "category"])
    table["share"] = np.random.default_rng(0).normal(size=len(table)) / atoms
    table.insert(0, "component", "map_guides")
    of_atoms = table.drop_duplicates("atom")[["component", "layer", "atom"]].assign(
        generality=np.linspace(0.95, 0.1, atoms),
        generality_low=np.linspace(0.9, 0.1, atoms),
        generality_high=np.linspace(1.0, 0.2, atoms),
        categories=3,
        weight=np.linspace(0.1, 0.9, atoms),
        factor="unclear",
    )
    of_atoms.loc[of_atoms.index[-1], ["generality", "factor"]] = [np.nan, "none"]
    return Factors(table, of_atoms, pd.DataFrame())


def texts(svg: bytes) -> list[str]:
    tree = ElementTree.fromstring(svg)  # noqa: S314
    return [element.text or "" for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_atoms_stand_from_general_to_specific_and_categories_below_each_other() -> None:
    factors = made_up(5)
    svg = factors_figure(factors.table, factors.generality, "map_guides", "factors")
    assert svg is not None
    shown = texts(svg)
    labels = [text for text in shown if re.fullmatch(r"\d-\d", text)]
    assert labels == ["1-0", "2-1", "1-2", "2-3", "1-4"]
    assert "<b>&$x$" in shown
    assert {"5 atoms", "4 unclear", "1 none"} <= set(shown)
    assert svg == factors_figure(factors.table, factors.generality, "map_guides", "factors")


def test_of_many_atoms_the_strongest_are_shown() -> None:
    factors = made_up(MOST_ATOMS + 30)
    svg = factors_figure(factors.table, factors.generality, "map_guides", "factors")
    assert svg is not None
    assert f"the {MOST_ATOMS} strongest of {MOST_ATOMS + 30} atoms" in texts(svg)
    assert len(svg) < 500_000


def test_a_component_without_atoms_has_no_figure() -> None:
    factors = made_up(3)
    assert factors_figure(factors.table, factors.generality, "detection", "factors") is None
    none = pd.DataFrame()
    assert factors_figure(none, none, "map_guides", "factors") is None


def test_what_is_measured_can_be_shown(tiny_store: FeatureStore, tiny_sae: SaeRun) -> None:
    from tiny import additive_plan, group_sums

    from spg_pipe.detector.make import make_detector

    detector = make_detector(tiny_store, additive_plan(tiny_sae))[0]
    factors = measure_factors(detector, [group_sums(tiny_store)], tiny_sae)
    svg = factors_figure(factors.table, factors.generality, "map_guides", "factors")
    assert svg is not None
    assert {"bolt", "nut"} <= set(texts(svg))
