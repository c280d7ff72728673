"""The atlas page: what each atom of a detector looks for, beside the tables of its folder."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from spg_pipe.artefacts.digests import require_files
from spg_pipe.artefacts.record import read_record
from spg_pipe.detector.record import DetectorOrigin
from spg_pipe.explain.atlas import Atlas
from spg_pipe.explain.atlas_files import AtlasRecord
from spg_pipe.explain.parts import MAP_GUIDES
from spg_pipe.report.factors import factors_figure, reading
from spg_pipe.report.page import atom_name, environment, fixed, per_cent, size_of
from spg_pipe.report.tables import Table

FACTORS = "factors.svg"
"""The figure of general and specific factors in the atlas folder."""
NO_CROPS = "No photograph could be read, so there are no crops."
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "images": ("Images", "{:,.0f}".format),
    "patches": ("Patches", "{:,.0f}".format),
    "r2": ("R²", fixed),
    "mse": ("MSE", "{:.3g}".format),
    "cosine": ("Mean cosine", fixed),
    "usage_mean": ("Mean use of a latent", per_cent),
    "usage_max": ("Most used latent", per_cent),
    "top_k_rate": ("Part of the k most used", per_cent),
}
"""Column of categories.parquet → its heading, and how it is written."""
_WIDE, _HIGH, _MARGIN = 400.0, 260.0, 10.0
"""The drawing of a dictionary's map, in its own units."""
_SMALLEST, _LARGEST = 3.0, 9.0
"""Radius of an atom of the detector there, by its share of the difference."""


@dataclass(frozen=True)
class Described:
    """An atom with its rows of the table."""

    name: str
    """<layer>-<atom>, also the anchor of the page."""
    whole: Any
    """Over all images: a named tuple of the table's columns."""
    categories: Sequence[Any]
    """By category, as the table has them."""

    @property
    def of_patches(self) -> bool:
        """It counts patch by patch; else for the image as a whole alone."""
        return bool(np.nan_to_num(self.whole.coefficient) != 0)

    @property
    def of_images(self) -> bool:
        """It counts for the image as a whole; it may do both."""
        return not self.of_patches or bool(np.nan_to_num(self.whole.detection_coefficient) != 0)

    @property
    def most_like(self) -> Any:
        """The strip of the patches most like it, null if there is none.

        Of a normal atom what raises the score most is least like it: there the latent's strip.
        """
        whole = self.whole
        projected = whole.side != "normal" and not pd.isna(whole.projection_crops)
        return whole.projection_crops if projected else whole.crops


@dataclass(frozen=True)
class Place:
    """An atom of the detector in the map of a dictionary."""

    atom: Described
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class DictionaryMap:
    """A layer's dictionary, drawn."""

    layer: str
    latents: int
    others: str
    """A path of SVG: a dot for each latent."""
    places: Sequence[Place]


class Strip(NamedTuple):
    """Crops of an atom's top patches."""

    file: str
    """A copy, as from the report's folder."""
    projected: bool
    """The patches are most like the atom; else the latent is most active in them."""
    side: str
    """"anomaly" or "normal": what the atom stands for."""


@dataclass(frozen=True)
class Looks:
    """What a report shows of an atlas."""

    page: str
    """Address of the atlas page as from the report's."""
    strips: Mapping[str, Strip]
    """By atom, of those that have crops."""


def copied(
    atlas: Path, detector: DetectorOrigin, names: Collection[str], folder: Path, out: Path
) -> Looks | None:
    """Copy crops of some atoms into a report that is being made in `folder` and will lie at `out`.

    None without an atlas of this detector.
    """
    if not (atlas / "config.json").is_file():
        return None
    record = read_record(atlas / "config.json", AtlasRecord, "atlas", "spg-pipe atlas")
    if record.detector.fingerprint != detector.fingerprint:
        return None
    require_files(atlas, record.files_sha256, "atlas", "spg-pipe atlas")
    table = pd.read_parquet(atlas / "atoms.parquet")
    strips = {}
    for atom in _described(table[table["category"].isna()]):
        whole = atom.whole
        file, projected = atom.most_like, atom.most_like is not whole.crops
        if atom.name in names and not pd.isna(file) and (atlas / file).is_file():
            copy = f"atoms/{atlas.name}-{atom.name}{Path(file).suffix}"
            strips[atom.name] = Strip(copy, projected, whole.side)
            (folder / "atoms").mkdir(exist_ok=True)
            shutil.copyfile(atlas / file, folder / copy)
    page = Path(os.path.relpath(atlas / "index.html", out)).as_posix()
    return Looks(page, strips)


def write_page(folder: Path, atlas: Atlas, record: AtlasRecord, source: str) -> None:
    """Write `folder`/index.html and the figure of factors; the crops are there already.

    The page is static: it links nothing but files of its folder, and opens without a server.

    Parameters
    ----------
    source : str
        The detector's folder, as the page names it.
    """
    detector, table, factors = record.detector, atlas.atoms, atlas.factors
    title = f"{detector.auxiliary.dataset}, seed {detector.seed}"
    figure = factors_figure(factors.table, factors.generality, MAP_GUIDES, title)
    if figure is not None:
        (folder / FACTORS).write_bytes(figure)
    described = _described(table)
    own = [atom for atom in described if atom.whole.in_detector]
    own.sort(key=lambda atom: -np.nan_to_num(atom.whole.share_apart))
    others = [atom for atom in described if not atom.whole.in_detector]
    others.sort(key=lambda atom: (atom.whole.layer, -np.nan_to_num(atom.whole.ap)))
    names = {atom.name for atom in described}
    fitted = _fitted(record, table)
    page = (
        environment()
        .get_template("atlas.html.jinja")
        .render(
            title=title,
            facts=_facts(atlas, record, source),
            notes=[NO_CROPS] if without_crops(atlas) else [],
            reading=reading(factors.shares),
            own=own,
            others=others,
            sample=_sample(own),
            names=names,
            with_seeds=any(atom.whole.seeds > 0 for atom in described),
            most=_most(table),
            fitted=fitted,
            maps=[_drawn(layer, places, own) for layer, places in atlas.layouts.items()],
            size=(_WIDE, _HIGH),
            factors=FACTORS if figure is not None else None,
            size_of=lambda file: size_of(folder / file),
            reconstruction=_reconstruction(atlas.categories, fitted),
        )
    )
    (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")


def without_crops(atlas: Atlas) -> bool:
    """Whether there is not a single strip of crops."""
    return bool(atlas.atoms[["crops", "projection_crops"]].isna().all(axis=None))


def _facts(atlas: Atlas, record: AtlasRecord, source: str) -> list[tuple[str, str]]:
    """What was described and on what: label and value."""
    whole = atlas.atoms[atlas.atoms["category"].isna()]
    sets = (f"{s.dataset}/{s.split} ({s.images:,} images)" for s in record.stores)
    return [
        ("Detector", f"{source} (fingerprint {record.detector.fingerprint[:8]})"),
        ("Protocol", record.detector.protocol.name),
        ("Backbone", f"{record.backbone.alias}, layers {', '.join(record.backbone.layers)}"),
        ("Guides", record.detector.guides.kind),
        ("Described on", ", ".join(sets)),
        ("Atoms of the detector", f"{int(whole['in_detector'].sum()):,}"),
        ("Other seeds' dictionaries", ", ".join(map(str, record.other_seeds)) or "none"),
        ("Licences", "; ".join(record.licences)),
    ]


def _fitted(record: AtlasRecord, table: pd.DataFrame) -> set[str]:
    """Categories of the auxiliary set; of several sets they have its name in front."""
    aux, names = record.detector.auxiliary.dataset, set(table["category"].dropna())
    if len(record.stores) == 1:
        return names if record.stores[0].dataset == aux else set()
    return {name for name in names if name == aux or name.startswith(f"{aux}/")}


def _described(table: pd.DataFrame) -> list[Described]:
    of_categories: dict[str, list[Any]] = {}
    whole: dict[str, Any] = {}
    rows: Iterator[Any] = table.itertuples(index=False)
    for row in rows:
        name = atom_name(row.layer, row.atom)
        if pd.isna(row.category):
            whole[name] = row
        else:
            of_categories.setdefault(name, []).append(row)
    return [Described(name, row, of_categories.get(name, [])) for name, row in whole.items()]


def _sample(own: Sequence[Described]) -> Described | None:
    """An atom that the page takes as its example: the strongest that speaks for an anomaly."""
    speaking = [atom for atom in own if atom.whole.side == "anomaly"]
    return next(iter([*speaking, *own]), None)


def _most(table: pd.DataFrame) -> float:
    """The end of the lines on which average precisions are drawn: a tenth that none exceeds."""
    columns = ["projection_ap", "projection_ap_high", "base_rate"]
    largest = table.loc[table["in_detector"], columns].max().max()
    return float(np.ceil(10 * np.nan_to_num(largest, nan=1.0)) / 10) or 1.0


def _drawn(layer: str, places: np.ndarray, own: Sequence[Described]) -> DictionaryMap:
    """Scale a layer's places (C, 2) into the drawing, and mark the detector's atoms."""
    known = places[np.isfinite(places).all(axis=1)]  # dead latents have no place
    lowest, span = known.min(axis=0), np.ptp(known, axis=0)
    inside = np.array([_WIDE - 2 * _MARGIN, _HIGH - 2 * _MARGIN])
    scaled = _MARGIN + (places - lowest) / np.where(span > 0, span, 1) * inside
    marked = [
        atom
        for atom in own
        if atom.whole.layer == layer and np.isfinite(places[atom.whole.atom]).all()
    ]
    most = (
        max((float(np.nan_to_num(atom.whole.share_apart)) for atom in marked), default=0.0) or 1.0
    )
    drawn = []
    for atom in reversed(marked):  # the strongest is drawn last, above the others
        x, y = map(float, scaled[atom.whole.atom])
        part = float(np.nan_to_num(atom.whole.share_apart)) / most
        drawn.append(Place(atom, x, y, _SMALLEST + (_LARGEST - _SMALLEST) * part**0.5))
    others = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in scaled if np.isfinite(x))
    return DictionaryMap(layer, len(known), others, drawn)


def _reconstruction(categories: pd.DataFrame, fitted: Collection[str]) -> Table:
    shown = [name for name in _COLUMNS if name in categories]
    rows = [
        (
            f"{row['layer']}: {'all' if pd.isna(row['category']) else row['category']}"
            + (" (fitted on)" if row["category"] in fitted else ""),
            *(_COLUMNS[name][1](row[name]) for name in shown),
        )
        for row in categories.to_dict("records")
    ]
    heads = ("Layer and category", *(_COLUMNS[name][0] for name in shown))
    return Table("The sparse autoencoder on the described sets.", heads, tuple(rows))
