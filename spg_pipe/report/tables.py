"""Tables that people read: metrics, what they were taken over, and published figures.

The page and the terminal show the same cells; `text.py` prints a `Table`, the template draws it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spg_pipe.metrics.tables import ZERO_SHOT, Row
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

_COUNTS = {
    "images": "Images",
    "images_normal": "Normal",
    "images_anomalous": "Anomalous",
    "images_unknown": "Unlabelled",
    "images_without_mask": "Without mask",
    "regions": "Regions",
    "vanished_regions": "Vanished regions",
    "anomalous_pixels": "Anomalous pixels",
}


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
    rows: Sequence[Row],
    published: PublishedFigure | None = None,
    columns: Iterable[str] = tuple(LABELS),
) -> Table:
    """A row a category, their mean, and the published figure where one is known.

    Parameters
    ----------
    rows : sequence of Row
        As `metrics.category_metrics` and `macro_mean` give them, or `seeds_mean`; NaN becomes
        "–", several seeds become "mean ± deviation".
    published : PublishedFigure, optional
        Adds a last row.
    columns : iterable of str
        Names of metrics; those that the rows do not have are left out.
    """
    shown = [name for name in columns if name in rows[0]]
    cells = [(row_label(row), *(cell(row, name) for name in shown)) for row in rows]
    summary = sum(row["kind"] == "mean" for row in rows)
    notes = _undefined_notes(rows, shown)
    if published is not None:
        figures = {name: published_figure(published, name) for name in shown}
        cells.append(("published", *(_number(figures[name]) for name in shown)))
        summary += 1
        notes = (*notes, f"Published: {published.source}.")
    heads = ("Category", *(LABELS[name] for name in shown))
    return Table(caption(rows[0]), heads, tuple(cells), notes, summary)


def caption(row: Row) -> str:
    """What a row's numbers stand on: data, backbone, protocols, resolution, accumulator, seeds."""
    bound = row.get("pixel_error_bound") or 0.0
    parts = [
        f"Target {row['dataset']} ({row['split']} split)",
        f"auxiliary {row['auxiliary'] or 'unknown'}",
        f"backbone {row['backbone']}",
        method_of(row),
        f"metrics protocol {row['protocol']}",
        f"resolution {row['resolution']}",
        f"accumulator {row['accumulator']}" + (f" (error ≤ {bound:.1g})" if bound else ""),
        _seeds(row),
    ]
    return "; ".join(parts) + "."


def row_label(row: Row) -> str:
    """A category's name, or "mean over n"; "mean over a to b" where metrics differ in n.

    A metric that no category has is shown as "–" and has no part in this.
    """
    if row["kind"] != "mean":
        return str(row["category"])
    over = sorted(set(row["categories"].values()) - {0}) or [0]
    count = str(over[0]) if len(over) == 1 else f"{over[0]} to {over[-1]}"
    return f"mean over {count} {'category' if over[-1] == 1 else 'categories'}"


def counts_table(rows: Sequence[Row]) -> Table:
    """Images, masks and regions behind the metrics of each category."""
    first = rows[0]
    cells = tuple(
        (
            "all" if row["kind"] == "mean" else str(row["category"]),
            *(f"{row[name]:,}" for name in _COUNTS),
        )
        for row in rows
    )
    notes = (
        "Without mask: anomalous images whose mask is missing; they take part in the image metrics "
        "only.",
        "Vanished regions: regions of a mask that have no pixel left at the model's resolution; "
        "they are not among the regions.",
    )
    head = f"What the metrics of {first['dataset']} ({first['split']} split) were taken over."
    summary = sum(row["kind"] == "mean" for row in rows)
    return Table(head, ("Category", *_COUNTS.values()), cells, notes, summary)


def overview_table(means: Sequence[tuple[Row, PublishedFigure | None]]) -> Table:
    """A row a direction: the means over categories, beside the published figures.

    Parameters
    ----------
    means : sequence of (row of kind "mean", published figure or None)
    """
    shown = [n for n in ("image_auroc", "pixel_auroc") if n in means[0][0]]
    area = next(n for n in ("pixel_aupro_0.3", "pixel_pro_fast") if n in means[0][0])
    known = any(figure is not None for _, figure in means)
    columns = ["Auxiliary → target", "Categories"]
    for name in shown:
        columns += [LABELS[name], "published"] if known else [LABELS[name]]
    columns.append(LABELS[area])
    cells, notes = [], []
    for row, figure in means:
        line = [f"{row['auxiliary']} → {row['dataset']}", str(max(row["categories"].values()))]
        for name in shown:
            line.append(cell(row, name))
            line += [_number(published_figure(figure, name))] if known else []
        line.append(cell(row, area))
        cells.append(tuple(line))
        if figure is not None:
            notes.append(f"Published, {line[0]}: {figure.source}.")
    first = means[0][0]
    head = (
        f"Means over categories; {method_of(first)}, metrics protocol "
        f"{first['protocol']}, resolution {first['resolution']}. {_seeds(first).capitalize()}."
    )
    return Table(head, tuple(columns), tuple(cells), tuple(notes))


def method_of(row: Row) -> str:
    """Guides, rule and protocol of the method behind a row; and what it saw, if not zero-shot."""
    method = row.get("method")  # tables of earlier versions have none
    sees = row.get("sees") or ZERO_SHOT
    protocol = f"method protocol {row['method_protocol']}"
    return ", ".join(part for part in (method, "" if sees == ZERO_SHOT else sees, protocol) if part)


def published_figure(figure: PublishedFigure | None, name: str) -> float:
    """A published metric as a share of 1; papers, and so recipes, may give per cent."""
    value = getattr(figure, name, None)
    if value is None:
        return math.nan
    return float(value) / 100 if value > 1 else float(value)


def _seeds(row: Row) -> str:
    seeds = row.get("seeds")
    if seeds is None:
        return "seed unknown" if row["seed"] is None else f"seed {row['seed']}"
    listed = ", ".join(map(str, seeds))
    return f"seeds {listed}: mean ± sample standard deviation"


def cell(row: Row, name: str) -> str:
    """A metric as text, with its deviation over seeds where there is one."""
    deviation = row.get(f"{name}_std", math.nan)
    text = _number(row[name])
    return text if math.isnan(deviation) else f"{text} ± {deviation:.3f}"


def _number(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.3f}"


def _undefined_notes(rows: Sequence[Row], shown: Sequence[str]) -> tuple[str, ...]:
    """Which metrics are undefined where, and over how many categories their mean was taken."""
    lacking: dict[str, list[str]] = {}
    for row in rows:
        names = [LABELS[name] for name in shown if name in row["undefined"]]
        if row["kind"] != "mean" and names:
            lacking.setdefault(", ".join(names), []).append(str(row["category"]))
    notes = [
        f"{UNDEFINED} undefined (one class only, or no mask): {names} of {', '.join(categories)}."
        for names, categories in lacking.items()
    ]
    mean = next((row for row in rows if row["kind"] == "mean"), None)
    counts = mean["categories"] if mean else {}
    for count in sorted({counts[name] for name in shown if name in counts}):
        names = [LABELS[name] for name in shown if counts.get(name) == count]
        if 0 < count < max(counts.values()):  # of none: the notes on what is undefined say it
            notes.append(f"Mean over {count} of {len(rows) - 1} categories: {', '.join(names)}.")
    return tuple(notes)
