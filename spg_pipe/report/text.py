"""The table of metrics for a terminal: plain text that also reads well in a log or a pipe."""

from collections.abc import Sequence
from dataclasses import replace
from textwrap import fill

from spg_pipe.metrics.tables import Row
from spg_pipe.recipe.params import PublishedFigure
from spg_pipe.report.tables import Table, metrics_table

COLUMNS = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "pixel_aupro_0.3",
    "pixel_pro_fast",
)
"""AUPRO@0.3 in protocol exact, the reference's PRO in protocol spg."""


def text_table(rows: Sequence[Row], published: PublishedFigure | None = None) -> str:
    """The per-category table of one direction as plain text.

    Parameters
    ----------
    rows : sequence of Row
        Of one seed, or of `metrics.seeds_mean`; NaN is shown as "–".
    published : PublishedFigure, optional
        Of the same direction: adds a line below the mean.

    Returns
    -------
    str
        A caption that names data, backbone, protocols and seeds; the table; notes, also on what
        pixel metrics leave out.
    """
    table = metrics_table(rows, published, COLUMNS)
    return plain(replace(table, notes=(*table.notes, *_left_out(rows))))


def _left_out(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the page has a table of counts for: a sentence each, none where nothing is missing."""
    categories = [row for row in rows if row["kind"] == "category"]
    without = sum(row["images_without_mask"] for row in categories)
    vanished = sum(row["vanished_regions"] for row in categories)
    notes = []
    if without:
        total = sum(row["images_anomalous"] for row in categories)
        notes.append(
            f"Left out of pixel metrics: {without:,} of {total:,} anomalous images, which have no "
            "mask."
        )
    if vanished:
        notes.append(
            f"Vanished when masks were resized, and so in no metric: {vanished:,} "
            f"{'region' if vanished == 1 else 'regions'}."
        )
    return tuple(notes)


def plain(table: Table) -> str:
    """A table with aligned columns; no final newline."""
    from rich.cells import cell_len  # names may hold wide characters

    lines = (table.columns, *table.rows)
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(table.columns))]

    def aligned(cells: Sequence[str]) -> str:
        first = cells[0] + " " * (widths[0] - cell_len(cells[0]))
        others = zip(cells[1:], widths[1:], strict=True)
        return "  ".join([first, *(" " * (w - cell_len(c)) + c for c, w in others)]).rstrip()

    width = sum(widths) + 2 * (len(widths) - 1)
    body = [aligned(row) for row in table.rows]
    if table.summary:
        body.insert(len(body) - table.summary, "─" * width)
    wrapped = [fill(line, max(width, 80)) for line in (table.caption, *table.notes)]
    return "\n".join([wrapped[0], "", aligned(table.columns), "─" * width, *body, *wrapped[1:]])
