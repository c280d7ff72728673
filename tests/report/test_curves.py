"""Curves of the report: drawings, data of the live ones, tables of some values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from report.conftest import SHOWN
from report.parsed import Page
from spg_pipe.report.curves import PIXEL, pixel_curves, training_curves


def test_every_drawing_is_valid_xml(folder):
    drawings = sorted((folder / "curves").glob("*.svg"))
    assert [path.stem for path in drawings] == ["aux--target-pixel", "aux-training"]
    texts = ["".join(ElementTree.parse(path).getroot().itertext()) for path in drawings]  # noqa: S314
    assert SHOWN in texts[0]


def test_without_curves_there_is_no_figure():
    assert pixel_curves([], "none") is None
    assert training_curves([], "none") is None


def data_of(script: Path) -> tuple[str, list[dict]]:
    """What a file of curves hands to the page: a name and its panels."""
    called = re.fullmatch(r"spgCurves\((.*)\);\n", script.read_text(), re.DOTALL)
    assert called
    name, panels = json.loads(f"[{called[1]}]")
    return name, panels


def test_the_data_of_curves_are_those_of_the_metrics(world, folder):
    name, panels = data_of(folder / "curves" / "aux--target-pixel.js")
    assert name == "aux--target-pixel"
    assert [panel["title"] for panel in panels] == [title for title, *_ in PIXEL.values()]
    names = [line["name"] for line in panels[0]["lines"]]
    assert names == [SHOWN, "only-defects", "mean, seed 111", "mean, seed 112", "mean"]
    x = np.array(panels[1]["x"])
    for seed, number in ((111, 2), (112, 3)):
        path = world.paths.metrics("aux", "target", seed)
        table = pd.read_csv(path.parent / "curves" / f"{path.stem}-categories.csv")
        known = [
            np.interp(x, rows["x"], rows["y"], rows["y"].iloc[0], np.nan)
            for _, rows in table[table["curve"] == "pr"].groupby("category", sort=False)
        ]
        drawn = np.array(panels[1]["lines"][number]["y"], dtype=float)
        np.testing.assert_allclose(drawn, np.mean(known, axis=0), rtol=1e-3)
    assert [line["shown"] for line in panels[0]["lines"]] == [True, True, False, False, True]


def test_some_values_of_the_curves_are_told_as_a_table(world, folder):
    page = Page(folder / "index.html")
    _, panels = data_of(folder / "curves" / "aux--target-pixel.js")
    roc = panels[0]
    mean = next(line["y"] for line in roc["lines"] if line["name"] == "mean")
    at = [np.interp(x, roc["x"], np.array(mean, float)) for x in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9)]
    rows = [row for row in page.rows if row and row[0] == "mean" and len(row) == 7]
    assert [float(cell) for cell in rows[0][1:]] == pytest.approx(at, abs=1e-3)


def test_a_histogram_is_told_bin_by_bin(world, folder):
    quality = json.loads((world.paths.sae("aux", 111) / "quality.json").read_text())
    layer, of = next(iter(quality["layers"].items()))
    rows = [row for row in Page(folder / "index.html").rows if row]
    start = next(number for number, row in enumerate(rows) if row[0] == "from")
    column = rows[start].index(f"layer {layer}, seed 111")
    edges, bins = of["frequencies"]["edges"], of["frequencies"]["latents"]
    told = rows[start + 1 : start + 1 + len(bins)]
    assert [float(row[column]) for row in told] == bins
    assert [float(row[0]) for row in told] == pytest.approx(edges[:-1], rel=0.01)


def test_the_licence_of_uplot_goes_with_every_report(folder):
    script = (folder / "curves" / "curves.js").read_text()
    assert "Permission is hereby granted" in script[:1200]
    assert "https://github.com/leeoniya/uPlot (v1.6.32)" in script
