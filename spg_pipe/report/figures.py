"""Curves as SVG: the same bytes for the same numbers, text as text."""

import io
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from spg_pipe.errors import printable
from spg_pipe.report.inputs import AuxiliaryRun, SeedRun
from spg_pipe.sae.run import LayerQuality

PANELS = {
    "roc": ("Pixel ROC", "false-positive rate", "true-positive rate"),
    "pr": ("Pixel precision and recall", "recall", "precision"),
    "pro": ("Per-region overlap (PRO)", "false-positive rate", "mean region overlap"),
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "spg-pipe",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a category may be called "a$b$"
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
}
_GRID = np.union1d(np.linspace(0, 1, 401), np.linspace(0, 0.02, 101))
"""Common x of the curves, finer where ROC and PRO rise."""
_MOST_COLOURS = 20
_LEGEND_COLUMNS = 5
_PRO_LIMIT = 0.3
_LOSSES = ("total", "detection", "segmentation", "sparsity")


def pixel_curves(runs: Sequence[SeedRun], title: str) -> bytes | None:
    """ROC, PR and PRO curves: a thin line a category (mean over seeds), bold their mean.

    Returns
    -------
    bytes or None
        SVG; None where no category has curves.
    """
    lines = {kind: _category_lines(runs, kind) for kind in PANELS}
    names = list(dict.fromkeys(name for panel in lines.values() for name in panel))
    if not names:
        return None

    def paint(figure: "Figure") -> None:
        handles: dict[str, Line2D] = {}
        for axes, kind in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            handles |= _panel(axes, kind, lines[kind], names)
        # matplotlib leaves out labels that begin with an underscore.
        labels = [f" {name}" if name.startswith("_") else name for name in handles]
        if len(names) <= _MOST_COLOURS:
            figure.legend(
                list(handles.values()),
                labels,
                loc="outside lower center",
                ncols=_LEGEND_COLUMNS,
                frameon=False,
            )

    legend_rows = -(-(len(names) + 1) // _LEGEND_COLUMNS) if len(names) <= _MOST_COLOURS else 0
    return svg_of(paint, (11.0, 3.8 + 0.2 * legend_rows), title)


def _category_lines(runs: Iterable[SeedRun], kind: str) -> dict[str, np.ndarray]:
    """Category → y on `_GRID`, mean over seeds; NaN beyond a curve's ends."""
    lines: dict[str, list[np.ndarray]] = {}
    for points in (run.curves for run in runs if run.curves is not None):
        of_kind = points[points["curve"] == kind]
        for category, curve in of_kind.groupby("category", sort=False):
            x, y = curve["x"].to_numpy(float), curve["y"].to_numpy(float)
            # Precision at recall below the first point is that of the first point.
            left = y[0] if kind == "pr" else np.nan
            lines.setdefault(str(category), []).append(np.interp(_GRID, x, y, left, np.nan))
    return {category: np.mean(curves, axis=0) for category, curves in lines.items()}


def _panel(
    axes: "Axes", kind: str, lines: dict[str, np.ndarray], names: Sequence[str]
) -> "dict[str, Line2D]":
    title, x_label, y_label = PANELS[kind]
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xlim=(0, 1), ylim=(0, 1.01))
    axes.set_box_aspect(1)
    handles = {}
    for number, name in enumerate(names):
        colour = colormaps["tab20"](number) if len(names) <= _MOST_COLOURS else "#999999"
        if name in lines:
            width = 0.9 if len(names) > 1 else 2.2
            (handles[name],) = axes.plot(_GRID, lines[name], linewidth=width, color=colour)
    whole = [y for y in lines.values() if not np.isnan(y).all()]
    if len(whole) > 1:
        known = np.ma.masked_invalid(whole)
        mean = known.mean(axis=0).filled(np.nan)  # at some x no curve has a value
        (handles["mean"],) = axes.plot(_GRID, mean, linewidth=2.2, color="black")
    if kind == "roc":
        axes.plot([0, 1], [0, 1], linewidth=0.8, linestyle=":", color="#777777")
    if kind == "pro":
        axes.axvline(_PRO_LIMIT, linewidth=0.8, linestyle=":", color="#777777")
    return handles


def training_curves(runs: Sequence[AuxiliaryRun], title: str) -> bytes | None:
    """SAE loss and dead share over tokens, latents by frequency; losses of trained guides.

    Returns
    -------
    bytes or None
        SVG; None where no curve was kept.
    """
    saes = [(run.sae_curve, run.quality) for run in runs if run.sae_curve is not None]
    guides = [run.guide_curve for run in runs if run.guide_curve is not None]
    if not saes and not guides:
        return None

    def paint(figure: "Figure") -> None:
        panels = figure.subplots(1, 4 if guides else 3)
        _paint_saes(saes, *panels[:3])
        if guides:
            panels[3].set(title="Guide losses", xlabel="epoch")
            for curve, (number, name) in itertools.product(guides, enumerate(_LOSSES)):
                label = name if curve is guides[0] else None
                _line(panels[3], curve["epoch"], curve[name], f"C{number}", label)
        for axes in panels[1:]:
            axes.set_ylim(bottom=0)
        for axes in panels:
            if axes.get_lines() or axes.patches:
                below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18)}
                axes.legend(**below, ncols=4, frameon=False, columnspacing=1.0)

    return svg_of(paint, (14.0 if guides else 10.5, 3.5), title)


def _paint_saes(
    saes: "Sequence[tuple[pd.DataFrame, dict[str, LayerQuality]]]",
    loss: "Axes",
    dead: "Axes",
    often: "Axes",
) -> None:
    loss.set(title="SAE reconstruction loss", xlabel="million tokens", yscale="log")
    _plain_log(loss.yaxis)
    dead.set(title="SAE latents that count as dead", xlabel="million tokens", ylabel="share")
    often.set(title="How often latents are active", xlabel="share of tokens", xscale="log")
    often.set_ylabel("latents")
    _plain_log(often.xaxis, (1,))
    for curve, quality in saes:
        for number, (layer, rows) in enumerate(curve.groupby("layer", sort=False)):
            colour, label = f"C{number}", f"layer {layer}" if curve is saes[0][0] else None
            for axes, column in ((loss, "reconstruction"), (dead, "dead_share")):
                _line(axes, rows["tokens"] / 1e6, rows[column], colour, label)
            bins = quality[str(layer)].frequencies
            often.stairs(bins.latents, bins.edges, color=colour, label=label)


def _line(axes: "Axes", x: "pd.Series", y: "pd.Series", colour: str, label: str | None) -> None:
    marker = "." if len(x) == 1 else None
    axes.plot(x, y, linewidth=1.0, marker=marker, color=colour, label=label)


def _plain_log(axis: "Axis", steps: tuple[int, ...] = (1, 2, 5)) -> None:
    """Ticks such as 0.5 and 20: matplotlib writes powers of ten as mathematics, which is off."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def svg_of(paint: Any, inches: tuple[float, float], title: str) -> bytes:
    """A figure's SVG without date, version or random identifiers."""
    stream = io.BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Only measures text with the font that lacks a glyph; the reader's browser draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=inches, layout="constrained")
        paint(figure)
        metadata = {"Date": None, "Creator": None, "Title": title}
        figure.savefig(stream, format="svg", metadata=metadata)
    # Names of categories may hold what XML may not.
    return printable(stream.getvalue().decode()).encode()
