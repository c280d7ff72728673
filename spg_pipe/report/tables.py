"""Tables that people read: metrics beside published figures.

The page and the terminal show the same cells: `plain` prints a `Table`, the template draws it.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from spg_pipe.errors import counted, one_line
from spg_pipe.metrics import MetricsRow, MetricsTable, RowContext
from spg_pipe.metrics.tables import ZERO_SHOT
from spg_pipe.recipe.params import PublishedFigure

UNDEFINED = "–"

LABELS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1_max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1_max": "Pixel F1-max",
    "pixel_aupro_0.3": "AUPRO@0.3",
    "pixel_aupro_0.05": "AUPRO@0.05",
    "pixel_aupro_1.0": "AUPRO@1.0",
    "pixel_pro_fast": "PRO (fast)",
    "pixel_pro_slow": "PRO (slow)",
}
"""Metrics in the order of the columns; those that no protocol of a table has are left out."""

OPERATING = {
    "image_precision": "Image precision",
    "image_recall": "Image recall",
    "image_fpr": "Image FPR",
    "pixel_precision": "Pixel precision",
    "pixel_recall": "Pixel recall",
    "pixel_fpr": "Pixel FPR",
}
"""Figures at the thresholds of a calibration, where a table has them."""

TERMINAL_COLUMNS = [*list(LABELS)[:7], "pixel_pro_fast"]
"""AUPRO@0.3 in protocol exact, the reference's PRO in protocol spg."""
_WIDEST = 10_000


@dataclass(frozen=True)
class Table:
    """Cells as text; the first of a row is its heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    summary: int = 0
    """How many of the last rows sum the others up."""


def metrics_table(
    table: MetricsTable,
    published: PublishedFigure | None = None,
    columns: Iterable[str] = tuple(LABELS),
) -> Table:
    """The categories' metrics, their mean, and the published figures where some are known.

    Parameters
    ----------
    table : MetricsTable
        NaN becomes "–", several seeds become "mean ± deviation".
    published : PublishedFigure, optional
        Adds a last row.
    columns : iterable of str
        Names of metrics; those that the table does not have are left out.
    """
    shown = [name for name in columns if name in table.mean.metrics]
    cells = [(row_label(row), *(cell(row, name) for name in shown)) for row in table.rows]
    notes = _undefined_notes(table, shown)
    if published is not None:
        figures = {name: published_figure(published, name) for name in shown}
        cells.append(("published", *(digits(figures[name]) for name in shown)))
        notes += (f"Published: {published.source}.",)
    heads = ("Category", *(LABELS[name] for name in shown))
    summary = 1 if published is None else 2
    return Table(caption(table), heads, tuple(cells), notes, summary)


def operating_table(table: MetricsTable) -> Table | None:
    """The thresholds of a calibration, and what they give; None where none was applied.

    Of several seeds each has a detector, and so thresholds, of its own.
    """
    if table.seeds or not set(OPERATING) <= set(table.mean.metrics):
        return None
    thresholds = {"image_threshold": "Image threshold", "pixel_threshold": "Pixel threshold"}
    cells = [
        (
            row_label(row),
            *(digits(row.thresholds.get(name, math.nan)).replace("-", "−") for name in thresholds),
            *(cell(row, name) for name in OPERATING),
        )
        for row in table.rows
    ]
    heads = ("Category", *thresholds.values(), *OPERATING.values())
    context = table.context
    says = (
        f"At the thresholds of a calibration: anomalous is what lies above; metrics protocol "
        f"{context.protocol}, method protocol {context.method_protocol}."
    )
    return Table(says, heads, tuple(cells), summary=1)


def caption(table: MetricsTable) -> str:
    """What the numbers stand on: data, backbone, protocols, resolution, accumulator, seeds."""
    context, bound = table.context, table.mean.pixel_error_bound
    parts = [
        f"Target {context.dataset} ({context.split} split)",
        f"auxiliary {context.auxiliary or 'unknown'}",
        f"backbone {context.backbone}",
        method_of(context),
        f"metrics protocol {context.protocol}",
        f"resolution {context.resolution}",
        f"accumulator {table.mean.accumulator}" + (f" (error ≤ {bound:.1g})" if bound else ""),
        _seeds(table),
    ]
    return "; ".join(parts) + "."


def row_label(row: MetricsRow) -> str:
    """A category's name, or "mean over n"; "mean over a to b" where metrics differ in n.

    A metric that no category has is shown as "–" and has no part in this.
    """
    if not row.categories:
        return row.category
    over = sorted(set(row.categories.values()) - {0}) or [0]
    count = str(over[0]) if len(over) == 1 else f"{over[0]} to {over[-1]}"
    return f"mean over {count} {'category' if over[-1] == 1 else 'categories'}"


def overview_table(tables: Sequence[tuple[MetricsTable, PublishedFigure | None]]) -> Table:
    """The means over categories of each direction, beside the published figures."""
    first, means = tables[0][0], [table.mean for table, _ in tables]
    area = next(n for n in ("pixel_aupro_0.3", "pixel_pro_fast") if n in first.mean.metrics)
    ways = [f"{table.context.auxiliary} → {table.context.dataset}" for table, _ in tables]
    seeds = [", ".join(map(str, table.seeds or [table.context.seed])) for table, _ in tables]
    columns = [
        ("Auxiliary → target", ways),
        ("Categories", [str(max(mean.categories.values())) for mean in means]),
        ("Seed(s)", seeds),
    ]
    known = any(figure for _, figure in tables)
    for name in ("image_auroc", "pixel_auroc", area):
        columns.append((LABELS[name], [cell(mean, name) for mean in means]))
        if known and name != area:
            published = [digits(published_figure(figure, name)) for _, figure in tables]
            columns.append(("published", published))
    methods = " and ".join(dict.fromkeys(method_of(table.context) for table, _ in tables))
    head = (
        f"Means over categories; {methods}; metrics protocol {first.context.protocol}, resolution "
        f"{first.context.resolution}."
    )
    if any(table.seeds for table, _ in tables):
        head += " Of several seeds: mean ± sample standard deviation."
    notes = [
        f"Published, {way}: {figure.source}."
        for way, (_, figure) in zip(ways, tables, strict=True)
        if figure
    ]
    heads, cells = zip(*columns, strict=True)
    return Table(head, heads, tuple(zip(*cells, strict=True)), tuple(notes))


def method_of(context: RowContext) -> str:
    """Guides, rule and protocol of the method; and its supervision, if it is not zero-shot."""
    supervision = "" if context.supervision == ZERO_SHOT else context.supervision
    parts = (context.method, supervision, f"method protocol {context.method_protocol}")
    return ", ".join(part for part in parts if part)


def published_figure(figure: PublishedFigure | None, name: str) -> float:
    """A published metric as a share of 1; papers, and so recipes, may give per cent."""
    value = getattr(figure, name, None)
    if value is None:
        return math.nan
    return float(value) / 100 if value > 1 else float(value)


def _seeds(table: MetricsTable) -> str:
    if table.seeds:
        listed = ", ".join(map(str, table.seeds))
        return f"seeds {listed}: mean ± sample standard deviation"
    seed = table.context.seed
    return "seed unknown" if seed is None else f"seed {seed}"


def cell(row: MetricsRow, name: str) -> str:
    """A metric as text, with its deviation over seeds where there is one."""
    return digits(row.metrics[name], row.deviations.get(name, math.nan))


def figure(row: Mapping[str, Any], name: str) -> str:
    """A metric of a flat row as text, with its deviation over seeds and its interval, if it has
    them; "–" where the row lacks it."""
    text = digits(row.get(name, math.nan), row.get(f"{name}_std", math.nan))
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return text if low is None else f"{text} [{low:.3f}, {high:.3f}]"


def digits(value: float, deviation: float = math.nan) -> str:
    """Three digits, "–" for NaN."""
    text = UNDEFINED if math.isnan(value) else f"{value:.3f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation:.3f}"


def _undefined_notes(table: MetricsTable, shown: Sequence[str]) -> tuple[str, ...]:
    """Which metrics are undefined where, and over how many categories their mean was taken."""
    lacking: dict[str, list[str]] = {}
    for row in table.categories:
        names = [LABELS[name] for name in shown if name in row.undefined]
        if names:
            lacking.setdefault(", ".join(names), []).append(row.category)
    notes = [
        f"{UNDEFINED} undefined (one class only, or no mask): {names} of {', '.join(categories)}."
        for names, categories in lacking.items()
    ]
    counts = table.mean.categories
    for count in sorted({counts[name] for name in shown}):
        names = [LABELS[name] for name in shown if counts[name] == count]
        if 0 < count < max(counts.values()):  # of none: the notes on what is undefined say it
            total = len(table.categories)
            notes.append(f"Mean over {count} of {total} categories: {', '.join(names)}.")
    return tuple(notes)


def text_table(table: MetricsTable, published: PublishedFigure | None = None) -> str:
    """Caption, `metrics_table` and notes of one direction; also on what pixel metrics leave out.

    And its `operating_table`, where there is one.
    """
    shown = metrics_table(table, published, TERMINAL_COLUMNS)
    shown = replace(shown, notes=(*shown.notes, *_left_out(table)))
    return "\n\n".join(map(plain, filter(None, (shown, operating_table(table)))))


def _left_out(table: MetricsTable) -> Sequence[str]:
    """What the page has a table of counts for: a sentence each, none where nothing is missing."""
    counts, notes = table.mean.counts, []
    if without := counts.images_without_mask:
        images = counted(counts.images_anomalous, "anomalous image")
        notes.append(f"Left out of pixel metrics, having no mask: {without:,} of {images}.")
    if vanished := counts.vanished_regions:
        regions = counted(vanished, "region")
        notes.append(f"Vanished when masks were resized, and so in no metric: {regions}.")
    return notes


def plain(table: Table) -> str:
    """A table with aligned columns; no final newline."""
    grid = Grid(box=box.HORIZONTALS, show_edge=False, pad_edge=False, header_style="")
    for number, column in enumerate(table.columns):
        grid.add_column(Text(column), justify="right" if number else "left", no_wrap=True)
    last = len(table.rows) - table.summary  # a line sets the rows that sum up apart
    for number, row in enumerate(table.rows, 1):
        grid.add_row(*(Text(one_line(cell)) for cell in row), end_section=number == last)
    stream = io.StringIO()
    Console(file=stream, width=_WIDEST, color_system=None, force_terminal=False).print(grid)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    width = max(80, *map(len, lines))
    first, *notes = (fill(line, width) for line in (table.caption, *table.notes))
    return "\n".join([first, "", *lines, *notes])
