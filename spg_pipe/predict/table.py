"""The lines of a run read back, and as a table."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from spg_pipe.artefacts.files import whole_file
from spg_pipe.datasets.walk import PREDICTIONS, SCORES
from spg_pipe.predict.lines import lines_of
from spg_pipe.predict.result import Line, Result, parse_line, row_of


def results_of(out: Path) -> Iterator[Line]:
    """What the lines in a folder say; an `SpgError` if one is damaged."""
    return map(parse_line, lines_of(out / PREDICTIONS))


def write_table(out: Path, batch: Sequence[bool] | None = None) -> None:
    """Write scores.csv of the lines in a folder, in their order, as a whole.

    `batch` becomes the last column.
    """
    columns: dict[str, None] = {}
    for result in results_of(out):
        columns |= dict.fromkeys(row_of(result))
    if batch is not None:
        columns["batch_decision"] = None
    with whole_file(out / SCORES) as stream:
        rows = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
        writer = csv.DictWriter(rows, list(columns), lineterminator="\n")
        writer.writeheader()
        for number, result in enumerate(results_of(out)):
            row = row_of(result)
            if batch is not None and isinstance(result, Result):
                row["batch_decision"] = "anomalous" if batch[number] else "normal"
            writer.writerow(row)
        rows.detach()
