"""Drawings as SVG: the same bytes for the same numbers, text as text."""

import io
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from spg_pipe.errors import printable
from spg_pipe.report.curves import Curves, Panel

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
_MOST_NAMES = 21
"""Of a legend: of more lines the drawing names none."""
_LEGEND_COLUMNS = 5


def write_curves(folder: Path, curves: Mapping[str, Curves]) -> None:
    """Write the drawing and the data of each, and what draws them live: uPlot and its licence."""
    folder.mkdir()
    for name, made in curves.items():
        (folder / f"{name}.svg").write_bytes(drawing(made))
        (folder / f"{name}.js").write_text(made.script(name), encoding="utf-8", newline="\n")
    room = resources.files("spg_pipe.report")
    uplot = room / "vendor" / "uplot"
    licence = (uplot / "LICENSE").read_text(encoding="utf-8")
    for ending, theirs in ((".js", "uPlot.iife.min.js"), (".css", "uPlot.min.css")):
        sources = [
            source.read_text(encoding="utf-8")
            for source in (uplot / theirs, room / f"curves{ending}")
        ]
        text = "\n".join([f"/*\n{licence}\n*/", *sources])
        (folder / f"curves{ending}").write_text(text, encoding="utf-8", newline="\n")


def drawing(curves: Curves) -> bytes:
    """The lines of a figure that are shown at first, as SVG."""

    def paint(figure: Figure) -> None:
        handles: dict[str, Line2D] = {}
        panels = curves.panels
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            handles |= _draw_panel(axes, panel, curves.colours)
        # matplotlib leaves out labels that begin with an underscore.
        labels = [f" {name}" if name.startswith("_") else name for name in handles]
        if len(handles) <= _MOST_NAMES:
            figure.legend(
                list(handles.values()),
                labels,
                loc="outside lower center",
                ncols=_LEGEND_COLUMNS,
                frameon=False,
            )

    names = {line.name for panel in curves.panels for line in panel.lines if line.shown}
    rows = -(-len(names) // _LEGEND_COLUMNS) if len(names) <= _MOST_NAMES else 0
    return svg_of(paint, (3.6 * len(curves.panels), 3.8 + 0.2 * rows), curves.title)


def _draw_panel(axes: Axes, panel: Panel, colours: dict[str, str | None]) -> dict[str, Line2D]:
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set_box_aspect(1)
    for axis, name in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        if panel.log == name:
            axes.set(**{f"{name}scale": "log"})
            _plain_log(axis, (1,) if name == "x" else (1, 2, 5))
    handles = {}
    for line in panel.lines:
        if line.shown:
            known = ~np.isnan(line.y)
            (handles[line.name],) = axes.plot(
                panel.x[known],
                line.y[known],
                color=colours[line.name] or "black",
                linewidth=2.2 if line.bold else 0.9,
                linestyle="--" if line.dashed else "-",
                drawstyle="steps-post" if panel.steps else "default",
                marker="." if known.sum() == 1 else None,
            )
    if panel.log != "y":
        axes.set_ylim(0, panel.y_limit)
    if panel.guide:
        left, low, right, high = panel.guide
        axes.plot([left, right], [low, high], linewidth=0.8, linestyle=":", color="#777777")
        axes.set_xlim(0, 1)
    return handles


def _plain_log(axis: Axis, steps: tuple[int, ...]) -> None:
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
