"""The figure of general and specific factors: atoms × categories, as SVG."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from spg_pipe.explain.factors import AT_RANDOM, GENERAL
from spg_pipe.explain.parts import MAP_GUIDES
from spg_pipe.report.figures import svg_of
from spg_pipe.report.page import atom_name, per_cent

MOST_ATOMS = 64
"""Columns of the figure: of more atoms the strongest."""
_COLOURS = {"general": "#1b7837", "specific": "#762a83", "unclear": "#999999", "none": "#dddddd"}


def factors_figure(
    table: pd.DataFrame, of_atoms: pd.DataFrame, component: str, title: str
) -> bytes | None:
    """Atoms from general (left) to specific (right): what each adds to the gap of each category.

    Parameters
    ----------
    table, of_atoms : DataFrame
        `Factors.table` and `Factors.generality`.
    component : str
        Whose atoms to show.

    Returns
    -------
    bytes or None
        SVG; None where nothing is known of the component's atoms.
    """
    if of_atoms.empty:
        return None
    atoms = of_atoms[of_atoms["component"] == component]
    if atoms.empty:
        return None
    shown = atoms.nlargest(MOST_ATOMS, "weight")
    order = ["generality", "categories", "weight"]
    shown = shown.sort_values(order, ascending=False, na_position="last", kind="stable")
    rows = table[table["component"] == component]
    shares = rows.pivot_table(
        index="category", columns=["layer", "atom"], values="share", sort=False
    )[list(zip(shown["layer"], shown["atom"], strict=True))]

    def paint(figure: Figure) -> None:
        heights = [1.3, 0.32 * len(shares) + 0.3]
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _bars(above, shown, len(atoms))
        _matrix(figure, below, shares)

    return svg_of(paint, (2.6 + 0.17 * len(shown), 2.6 + 0.32 * len(shares)), title)


def reading(shares: pd.DataFrame) -> list[str]:
    """What the figure says, in sentences, from `Factors.shares`."""
    sentences = []
    for row in shares.to_dict("records"):
        part = "the guides' part of the map" if row["component"] == MAP_GUIDES else "whole images"
        sentences.append(
            f"General atoms of {part}: {row['general_atoms']} of {row['atoms']}. They carry "
            f"{per_cent(row['general'])} (95 % interval {per_cent(row['general_low'])} to "
            f"{per_cent(row['general_high'])}) of what all atoms add to the gap between anomalous "
            f"and normal ones, without signs, mean over {row['categories']} categories. Where the "
            f"same direction is written with random atoms, at most {AT_RANDOM} of a layer, general "
            f"ones carry {per_cent(row['general_random'])} ({per_cent(row['general_random_low'])} "
            f"to {per_cent(row['general_random_high'])}): so much comes from the direction, "
            "whatever the dictionary."
        )
    return sentences


def _bars(axes: Axes, shown: pd.DataFrame, atoms: int) -> None:
    """How general each atom is, with its interval."""
    value = shown["generality"].to_numpy()
    ends = shown[["generality_low", "generality_high"]].to_numpy().T
    away = np.clip([value - ends[0], ends[1] - value], 0, None)
    colours = [_COLOURS[factor] for factor in shown["factor"]]
    places = np.arange(len(shown)) + 0.5
    axes.bar(places, value, width=0.8, color=colours)
    axes.errorbar(places, value, yerr=away, fmt="none", ecolor="#333333", elinewidth=0.7)
    axes.axhline(GENERAL, linewidth=0.8, linestyle=":", color="#777777")
    of = f"the {len(shown)} strongest of {atoms} atoms" if len(shown) < atoms else f"{atoms} atoms"
    axes.set(ylim=(0, 1), ylabel="generality")
    axes.set_title(of, loc="left")
    axes.set_axisbelow(True)
    axes.grid(visible=False, axis="x")
    counts = shown["factor"].value_counts()
    kinds = [kind for kind in _COLOURS if kind in counts]
    handles = [Patch(color=_COLOURS[kind], label=f"{counts[kind]} {kind}") for kind in kinds]
    axes.legend(
        handles=handles,
        ncols=len(kinds),
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
    )


def _matrix(figure: Figure, axes: Axes, shares: pd.DataFrame) -> None:
    """The share of each category's Σ|contribution|, by colour."""
    most = max(float(np.abs(shares.to_numpy()).max()), 1e-12)
    mesh = axes.pcolormesh(
        shares.to_numpy(), cmap=colormaps["PuOr_r"], vmin=-most, vmax=most, rasterized=False
    )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(shares)) + 0.5, shares.index)
    layers, latents = (shares.columns.get_level_values(name) for name in ("layer", "atom"))
    labels = [atom_name(layer, latent) for layer, latent in zip(layers, latents, strict=True)]
    axes.set_xticks(np.arange(len(labels)) + 0.5, labels, rotation=90, fontsize=6)
    axes.set_xlabel("atom")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    figure.colorbar(mesh, ax=axes, label="share of the gap", fraction=0.03, pad=0.01)
