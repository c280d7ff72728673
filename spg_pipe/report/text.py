"""Tables for a terminal: plain text that also reads well in a log or a pipe."""

import io
from collections.abc import Sequence
from dataclasses import replace
from textwrap import fill

from spg_pipe.metrics import MetricsTable
from spg_pipe.recipe.params import PublishedFigure
from spg_pipe.report.tables import LABELS, Table, metrics_table

COLUMNS = [*list(LABELS)[:7], "pixel_pro_fast"]
"""AUPRO@0.3 in protocol exact, the reference's PRO in protocol spg."""
_WIDEST = 10_000


def text_table(table: MetricsTable, published: PublishedFigure | None = None) -> str:
    """Caption, `metrics_table` and notes of one direction; also on what pixel metrics leave out."""
    shown = metrics_table(table, published, COLUMNS)
    return plain(replace(shown, notes=(*shown.notes, *_left_out(table))))


def _left_out(table: MetricsTable) -> Sequence[str]:
    """What the page has a table of counts for: a sentence each, none where nothing is missing."""
    counts, notes = table.mean.counts, []
    if without := counts.images_without_mask:
        notes.append(
            f"Left out of pixel metrics: {without:,} of {counts.images_anomalous:,} anomalous "
            "images, which have no mask."
        )
    if vanished := counts.vanished_regions:
        notes.append(
            f"Vanished when masks were resized, and so in no metric: {vanished:,} "
            f"{'region' if vanished == 1 else 'regions'}."
        )
    return notes


def plain(table: Table) -> str:
    """A table with aligned columns; no final newline."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.HORIZONTALS, show_edge=False, pad_edge=False, header_style="")
    for number, column in enumerate(table.columns):
        grid.add_column(Text(column), justify="right" if number else "left", no_wrap=True)
    last = len(table.rows) - table.summary  # a line sets the rows that sum up apart
    for number, row in enumerate(table.rows, 1):
        grid.add_row(*map(Text, row), end_section=number == last)
    stream = io.StringIO()
    Console(file=stream, width=_WIDEST, color_system=None, force_terminal=False).print(grid)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    width = max(80, *map(len, lines))
    first, *notes = (fill(line, width) for line in (table.caption, *table.notes))
    return "\n".join([first, "", *lines, *notes])
