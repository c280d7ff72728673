"""Tables of metrics on disk: JSON (the artefact) and CSV (for spreadsheets and plots)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spg_pipe.errors import SpgError
from spg_pipe.metrics.tables import METRICS, Row

_NUMBERS = {*METRICS, *(f"{name}_std" for name in METRICS)}
_NUMBERS |= {"image_f1_threshold", "pixel_f1_threshold"}


def write_json(path: Path, rows: Sequence[Row], provenance: dict[str, Any] | None = None) -> None:
    """Write a table as {"mean": row, "categories": {name: row}, "provenance": …}, NaN as null.

    "mean" is absent if no row is of kind "mean", and "provenance" if there is none. The file
    appears whole or not at all.
    """
    document: dict[str, Any] = {row["kind"]: row for row in rows if row["kind"] == "mean"}
    document["categories"] = {row["category"]: row for row in rows if row["kind"] == "category"}
    if provenance is not None:
        document["provenance"] = provenance
    text = json.dumps(_without_nan(document), indent=1, ensure_ascii=False, allow_nan=False)
    _write(path, text + "\n")


def read_json(path: Path) -> list[Row]:
    """The rows that `write_json` wrote: categories first, then the mean; null as NaN.

    Raises
    ------
    SpgError : the file is absent, or is not such a table.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = list(document["categories"].values())
        rows += [document["mean"]] if "mean" in document else []
        return [{k: _with_nan(k, v) for k, v in row.items()} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpgError(
            f"{path}: not a table of metrics ({type(error).__name__}: {error}). "
            "Write it again with spg-pipe evaluate."
        ) from error


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV: columns in the order of their first appearance, floats in full.

    NaN is "nan", a list "a;b", a dict "a=1;b=2"; a column that a row lacks stays empty. The file
    appears whole or not at all.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    _write(path, text.getvalue())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _with_nan(name: str, value: Any) -> Any:
    return math.nan if value is None and name in _NUMBERS else value


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ";".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
