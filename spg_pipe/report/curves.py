"""What the report's curves are: lines by category, seed or layer.

`figures.drawing` draws them once as SVG, for print and where scripts are off; `curves.js` draws
them with uPlot, so that a reader can point at, hide and enlarge them.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from spg_pipe.errors import printable
from spg_pipe.report.inputs import AuxiliaryRun, SeedRun
from spg_pipe.report.tables import UNDEFINED
from spg_pipe.sae.run import Histogram

PIXEL = {
    "roc": ("Pixel ROC", "false-positive rate", "true-positive rate"),
    "pr": ("Pixel precision and recall", "recall", "precision"),
    "pro": ("Per-region overlap (PRO)", "false-positive rate", "mean region overlap"),
}
_GUIDES = {"roc": (0.0, 0.0, 1.0, 1.0), "pro": (0.3, 0.0, 0.3, 1.0)}
_GRID = np.union1d(np.linspace(0, 1, 401), np.linspace(0, 0.02, 101))
"""Common x of the pixel curves, finer where ROC and PRO rise."""
_TOLD = (0.01, 0.05, 0.1, 0.3, 0.5, 0.9)
"""Where the table beside a pixel curve gives its value."""
_LOSSES = ("total", "detection", "segmentation", "sparsity")
_HUES = [to_hex(colour) for colour in colormaps["tab20"]([*range(0, 20, 2), *range(1, 20, 2)])]
_GREY = "#8c8c8c"
"""Of more names than hues: they are told apart by pointing at them."""


@dataclass(frozen=True)
class Line:
    """A curve. Those of one name, in several panels, are shown and hidden together."""

    name: str
    y: np.ndarray
    """float, on the panel's x; NaN where there is no value."""
    bold: bool = False
    """In the colour of the text."""
    dashed: bool = False
    shown: bool = True
    """At first, and in the drawing."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    x: np.ndarray
    """float, ascending."""
    lines: Sequence[Line]
    told: Sequence[float]
    """Of x: where the table beside the drawing has values."""
    y_limit: float | None = None
    """Of an axis from 0; None: as far as the values go."""
    log: str = ""
    """The axis that is logarithmic, "x" or "y"."""
    steps: bool = False
    """A value counts up to the next x."""
    guide: tuple[float, float, float, float] | None = None
    """A dotted line that is no data: from x, y to x, y."""

    @property
    def says(self) -> str:
        """What the table beside the drawing has."""
        if self.steps:
            return f"{self.title}: {self.y_label} by {self.x_label}, from one to the next"
        return f"{self.title}: {self.y_label} at {self.x_label} …"

    @property
    def table(self) -> list[list[str]]:
        """Heads, then a row a line; of a histogram a column, for it has many bins."""
        lines = [[line.name, *self._cells(line)] for line in self.lines if line.shown]
        rows = [["from" if self.steps else "Curve", *(f"{x:.3g}" for x in self.told)], *lines]
        return [list(column) for column in zip(*rows, strict=True)] if self.steps else rows

    def _cells(self, line: Line) -> list[str]:
        """The values of a line at `told` in words, between two known ones interpolated."""
        known = ~np.isnan(line.y)
        if self.steps:
            values = line.y[np.searchsorted(self.x, self.told)]
        elif known.any():
            values = np.interp(self.told, self.x[known], line.y[known], np.nan, np.nan)
        else:
            values = np.full(len(self.told), np.nan)
        digits = ".3f" if self.y_limit else ".3g"
        return [UNDEFINED if np.isnan(value) else f"{value:{digits}}" for value in values]


@dataclass(frozen=True)
class Curves:
    """One figure."""

    title: str
    panels: Sequence[Panel]

    @property
    def colours(self) -> dict[str, str | None]:
        """Name → #rrggbb; None: the text's."""
        lines = {line.name: line.bold for panel in self.panels for line in panel.lines}
        thin = [name for name, bold in lines.items() if not bold]
        hues = _HUES if len(thin) <= len(_HUES) else itertools.repeat(_GREY)
        return dict.fromkeys(lines) | dict(zip(thin, hues, strict=False))

    def script(self, name: str) -> str:
        """The data as a script for curves.js: a page that is a file may read no other file."""
        colours = self.colours
        panels = [
            {
                "title": panel.title,
                "xLabel": panel.x_label,
                "yLabel": panel.y_label,
                "x": _rounded(panel.x),
                "lines": [
                    {
                        "name": printable(line.name),
                        "colour": colours[line.name],
                        "bold": line.bold,
                        "dashed": line.dashed,
                        "shown": line.shown,
                        "y": _rounded(line.y),
                    }
                    for line in panel.lines
                ],
                "yLimit": panel.y_limit,
                "log": panel.log,
                "steps": panel.steps,
                "guide": panel.guide,
            }
            for panel in self.panels
        ]
        data = json.dumps(panels, separators=(",", ":"), allow_nan=False)
        return f"spgCurves({json.dumps(name)}, {data});\n"


def _rounded(values: np.ndarray) -> list[float | None]:
    """To four digits, finer than a pixel; null for NaN."""
    return [None if np.isnan(value) else float(f"{value:.4g}") for value in values]


def pixel_curves(runs: Sequence[SeedRun], title: str) -> Curves | None:
    """ROC, PR and PRO curves: a line a category (mean over seeds), bold their mean.

    Of several seeds also the mean of each over categories, hidden at first. None where no category
    has curves.
    """
    points = {run.seed: run.curves for run in runs if run.curves is not None}
    panels = []
    for kind, labels in PIXEL.items():
        seeds = {seed: _category_lines(table, kind) for seed, table in points.items()}
        names = dict.fromkeys(name for lines in seeds.values() for name in lines)
        means = {
            name: np.mean([lines[name] for lines in seeds.values() if name in lines], axis=0)
            for name in names
        }
        lines = [Line(name, y, bold=len(means) == 1) for name, y in means.items()]
        if len(means) > 1:
            for seed, of_seed in seeds.items() if len(seeds) > 1 else ():
                mean = _mean(of_seed.values())
                lines.append(Line(f"mean, seed {seed}", mean, dashed=True, shown=False))
            lines.append(Line("mean", _mean(means.values()), bold=True))
        guide = _GUIDES.get(kind)
        panels.append(Panel(*labels, _GRID, lines, _TOLD, y_limit=1.01, guide=guide))
    return Curves(title, panels) if any(panel.lines for panel in panels) else None


def _category_lines(points: pd.DataFrame, kind: str) -> dict[str, np.ndarray]:
    """Category → y on `_GRID`; NaN beyond a curve's ends."""
    lines = {}
    for category, curve in points[points["curve"] == kind].groupby("category", sort=False):
        x, y = curve["x"].to_numpy(float), curve["y"].to_numpy(float)
        # Precision at recall below the first point is that of the first point.
        left = y[0] if kind == "pr" else np.nan
        lines[str(category)] = np.interp(_GRID, x, y, left, np.nan)
    return lines


def _mean(lines: Iterable[np.ndarray]) -> np.ndarray:
    """At each x of the lines that have a value there."""
    return np.ma.masked_invalid([*lines]).mean(axis=0).filled(np.nan)


def training_curves(runs: Sequence[AuxiliaryRun], title: str) -> Curves | None:
    """SAE loss and dead share over tokens, latents by frequency; losses of trained guides.

    None where no curve was kept.
    """
    several = len(runs) > 1
    loss: dict[str, pd.Series] = {}
    dead: dict[str, pd.Series] = {}
    often: dict[str, pd.Series] = {}
    guides: dict[str, pd.Series] = {}
    for run in runs:
        of_seed = f", seed {run.seed}" if several else ""
        if run.sae_curve is not None:
            for layer, rows in run.sae_curve.groupby("layer", sort=False):
                name, tokens = f"layer {layer}{of_seed}", rows["tokens"].to_numpy() / 1e6
                loss[name] = pd.Series(rows["reconstruction"].to_numpy(float), tokens)
                dead[name] = pd.Series(rows["dead_share"].to_numpy(float), tokens)
                often[name] = _steps(run.quality[str(layer)].frequencies)
        if run.guide_curve is not None:
            epochs = run.guide_curve["epoch"]
            for name in _LOSSES:
                values = run.guide_curve[name].to_numpy(float)
                guides[f"{name}{of_seed}"] = pd.Series(values, epochs)
    panels = [
        _panel("SAE reconstruction loss", "million tokens", "loss", loss, log="y"),
        _panel("SAE latents that count as dead", "million tokens", "share", dead),
        _panel("How often latents are active", "share of tokens", "latents", often, log="x"),
        _panel("Guide losses", "epoch", "loss", guides),
    ]
    drawn = [panel for panel in panels if panel.lines]
    return Curves(title, drawn) if drawn else None


def _steps(bins: Histogram) -> pd.Series:
    """A histogram as its counts at the left edges, and again at the last edge."""
    return pd.Series([*bins.latents, bins.latents[-1]], bins.edges, dtype=float)


def _panel(
    title: str, x_label: str, y_label: str, lines: Mapping[str, pd.Series], log: str = ""
) -> Panel:
    """Lines on the union of their x; of a histogram every bin is told, else five places."""
    table = pd.DataFrame(lines).sort_index()
    x, steps = table.index.to_numpy(float), log == "x"
    told = x[:-1] if steps else x[np.linspace(0, len(x) - 1, min(5, len(x))).astype(int)]
    drawn = [Line(str(name), table[name].to_numpy(float)) for name in table]
    return Panel(title, x_label, y_label, x, drawn, told.tolist(), log=log, steps=steps)
