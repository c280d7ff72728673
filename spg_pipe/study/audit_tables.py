"""The rows of an audit, and the tables that a person reads of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from spg_pipe.report.tables import LABELS, UNDEFINED, Table, digits
from spg_pipe.study.audit_dictionaries import DICTIONARIES, DIRECTION, OWN
from spg_pipe.study.held_out import FIGURES

LOSS = 0.01
"""Of a figure: as many atoms are needed as lose less."""


CONTRAST, TRAINED = "contrast guides", "trained guides"
WHOLE = "whole decision"
"""Claims of faithfulness: of either kind of guides alone; of the first also with self-distances."""
FAITHFUL = (CONTRAST, f"{CONTRAST}, {WHOLE}", TRAINED)


class Row(NamedTuple):
    """One figure about a dictionary."""

    claim: str
    """What is tested: `contrast guides`, `trained guides`, …"""
    auxiliary: str
    target: str
    seed: int
    dictionary: str
    variant: str
    n: int
    figure: str
    value: float
    low: float | None = None
    high: float | None = None


def tables(rows: Sequence[Row], about: str) -> list[Table]:
    """What came out, by claim; means over directions of means over seeds."""
    frame = pd.DataFrame(rows, columns=Row._fields)
    frame["dictionary"] = pd.Categorical(frame["dictionary"], (DIRECTION, *DICTIONARIES))
    found = [*(table for claim in FAITHFUL for table in _faithfulness(frame, claim))]
    found += _others(frame[~frame.claim.isin(FAITHFUL)])
    return [replace(each, caption=f"{each.caption} {about}") for each in found]


def means(frame: pd.DataFrame, rows: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean values over directions of means over seeds, NaN where there is no such row."""
    ways = ["auxiliary", "target"]
    each = frame.groupby([*rows, *columns, *ways], observed=True)["value"].mean().reset_index()
    return each.pivot_table("value", [*rows], [*columns], "mean", observed=True)


def atoms_needed(by_n: pd.Series, whole: float) -> float:
    """The least number of atoms from which on a figure is less than `LOSS` below another.

    Parameters
    ----------
    by_n : mean figure, indexed by n in rising order
    whole : the figure of the whole guides

    Returns
    -------
    float
        NaN if no number is enough.
    """
    known = by_n.dropna()
    short = known.index[~(whole - known < LOSS)]
    enough = known.index[known.index > short.max()] if len(short) else known.index
    return float(enough.min())


def _faithfulness(frame: pd.DataFrame, claim: str) -> Iterator[Table]:
    values = means(frame[frame.claim == claim], ("figure", "dictionary", "variant"), ("n",))
    for figure in FIGURES if len(values) else ():
        of_figure, rows = values.loc[figure], []
        own = of_figure.loc[[(OWN, "kept")]].to_numpy()[0]
        whole = float(own[~np.isnan(own)][-1])
        for name, what in of_figure.index.to_list():
            by_n = of_figure.loc[name, what]
            needed = math.nan if what.startswith("removed") else atoms_needed(by_n, whole)
            cells = [*map(digits, by_n), UNDEFINED if math.isnan(needed) else f"{needed:.0f}"]
            rows.append((f"{name}, {what}", *cells))
        yield Table(
            f"{claim}: {LABELS[figure]} with n atoms of each layer and view.",
            ("Dictionary", *map(str, values.columns), f"Loses < {LOSS}"),
            tuple(rows),
        )


def _others(frame: pd.DataFrame) -> Iterator[Table]:
    """Of the other claims, a table each: a row for each dictionary and variant."""
    for claim, part in frame.groupby("claim", sort=False):
        wide = means(part, ("dictionary", "variant"), ("figure", "n"))
        named = [str(figure) for figure in wide.columns.get_level_values("figure")]
        heads = [
            f"{name} of {n}" if named.count(name) > 1 else name
            for name, n in zip(named, wide.columns.get_level_values("n"), strict=True)
        ]
        rows = tuple(
            (", ".join(map(str, name)), *map(_number, values))
            for name, values in zip(wide.index, wide.to_numpy(), strict=True)
        )
        yield Table(f"{claim}.", ("Dictionary", *heads), rows)


def _number(value: float) -> str:
    """Three digits, also of what is nearly 0."""
    return f"{value:.0e}" if 0 < value < 5e-4 else digits(value)
