"""Tables of metrics and curves as CSV, for spreadsheets and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from spg_pipe.metrics.pixel import PixelMetrics


class CurvePoint(NamedTuple):
    """A point of a category's curve."""

    category: str
    curve: str  # "roc", "pr" or "pro"
    x: float  # in [0, 1]
    y: float


def curve_points(category: str, pixel_metrics: PixelMetrics) -> list[CurvePoint]:
    """The curves of a category, in the order in which they are drawn."""
    return [
        CurvePoint(category, name, float(x), float(y))
        for name, curve in pixel_metrics.curves.items()
        for x, y in zip(curve.x, curve.y, strict=True)
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV: columns in the order of their first appearance, floats in full.

    NaN is "nan", a list "a;b", a mapping "a=1;b=2"; a column that a row lacks stays empty. The
    file appears whole or not at all.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text.getvalue(), encoding="utf-8", newline="\n")
    partial.replace(path)


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        return ";".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return value
