"""The rows of an audit, and the tables that a person reads of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from spg_pipe.detector.coarse import FIGURES
from spg_pipe.report.tables import LABELS, UNDEFINED, Table, digits
from spg_pipe.study.audit_dictionaries import DICTIONARIES, DIRECTION, OWN

_WAYS = ("auxiliary", "target")
LOSS = 0.01
"""Of a figure: as many atoms are needed as lose less."""


CONTRAST, TRAINED = "contrast guides", "trained guides"
WHOLE = "whole decision"
"""Claims of faithfulness: of either kind of guides alone; of the first also with self-distances."""
FAITHFUL = (CONTRAST, f"{CONTRAST}, {WHOLE}", TRAINED)
NAMED = "atoms of the guides"
"""A variant of several claims."""


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
    """Mean values over directions of means over seeds, NaN where one of them has no such value.

    Of the guides' own atoms more than there are count as all.
    """
    each = frame.pivot_table("value", [*rows, *_WAYS, "seed"], [*columns], observed=True)
    whole = (each.index.get_level_values("dictionary") == OWN) & (
        each.index.get_level_values("variant") == "kept"
    )
    each.loc[whole] = each.loc[whole].ffill(axis=1)
    by_way = each.groupby(level=[*rows, *_WAYS], observed=True).mean().dropna(how="all")
    ways = by_way.groupby(level=[*rows], observed=True)
    return ways.mean().where(ways.count().eq(ways.size(), axis=0))


def atoms_needed(by_n: pd.Series, whole: float) -> float:
    """The least number of atoms from which on a figure is less than `LOSS` below that of all.

    `by_n` is the mean figure, indexed by n in rising order; NaN if no number is enough.
    """
    known = by_n.dropna()
    short = known.index[~(whole - known < LOSS)]
    enough = known.index[known.index > short.max()] if len(short) else known.index
    return float(enough.min())


def _faithfulness(frame: pd.DataFrame, claim: str) -> Iterator[Table]:
    values = means(frame[frame.claim == claim], ("figure", "dictionary", "variant"), ("n",))
    # Guides of one auxiliary set have other numbers of atoms than those of another.
    numbers = [int(str(n)) for n in values.columns]
    values = values[[n for n in numbers if n & (n - 1) == 0 or n == max(numbers)]]
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
