"""What sets a shown picture apart from normal ones: parts of its score, and its strongest atoms.

A token has a large product with many atoms, whatever it shows: raw contributions are almost the
same for every image. So they are compared with their mean over normal images of the category. The
differences add up to the difference of the scores.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from spg_pipe.artefacts.record import read_record
from spg_pipe.datasets.manifest import LABEL_NORMAL
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import DetectorRecord
from spg_pipe.explain.explanation import Explanation, explain
from spg_pipe.explain.parts import MAP_GUIDES
from spg_pipe.recipe.paths import Paths
from spg_pipe.report.inputs import DirectionRuns, SeedRun
from spg_pipe.report.page import atom_name
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

SHOWN = 4
"""Atoms of a picture."""
USUAL = 16
"""Images of a category that its pictures are compared with, at most."""
_BATCH = 8
PARTS = {
    "map_guides": "guides in the map",
    "map_self_distance": "self-distance in the map",
    "detection": "guides of the whole image",
    "self_distance": "self-distance of the image",
}
"""Component → its name on the page, in this order; the others follow under their own."""


class Part(NamedTuple):
    """A part of a picture's score."""

    name: str
    value: float
    usual: float
    """Its mean over the images that the picture is compared with."""


class AtomPart(NamedTuple):
    """An atom in one picture."""

    name: str
    """<layer>-<atom>"""
    contribution: float
    """To the difference of the scores."""
    map: np.ndarray | None
    """(h, w) float64: its part of the map; None if only the whole image is measured along it."""


@dataclass(frozen=True)
class Reasons:
    """Why a picture's score is not the usual one."""

    score: Part
    parts: Sequence[Part]
    """They add up to the score, and their differences to its difference."""
    atoms: Sequence[AtomPart]
    """Those with the largest |contribution|."""
    of_atoms: int
    """Of so many."""
    all_atoms: float
    """The sum of all atoms' contributions to the difference of the scores."""
    compared: "Usual"


@dataclass(frozen=True)
class Usual:
    """The images of a category that its pictures are compared with."""

    images: int
    normal: bool
    """They are labelled normal; else they are any."""
    means: np.ndarray
    """(1 + K + R,) float64: of their `_figures`."""


@dataclass(frozen=True)
class Source:
    """What the pictures of a direction are taken apart with."""

    detector: Detector
    store: FeatureStore
    run: SeedRun

    def explained(self, images: Sequence[int]) -> Iterator[Explanation]:
        """Images of the store, a few at a time."""
        grids = {name: shape.grid for name, shape in self.store.spec.layers.items()}
        seen = self.store.spec.backbone
        for start in range(0, len(images), _BATCH):
            rows = np.array(images[start : start + _BATCH])
            tokens = {layer: image_tokens(self.store, layer, rows) for layer in self.store.layers}
            yield explain(self.detector, tokens, grids, seen, self.run.rule)


def source_of(paths: Paths, way: DirectionRuns) -> Source | None:
    """The detector and the tokens behind a direction's scores; None if either is gone."""
    run = way.runs[0]
    folder = paths.detector(way.direction.aux, run.seed)
    if way.store is None or not (folder / "config.json").is_file():
        return None
    record = read_record(folder / "config.json", DetectorRecord, "detector", "dvc repro")
    if record.fingerprint != run.detector.fingerprint:
        return None
    return Source(Detector.load(folder), way.store, run)


def why(source: Source | None, category: str, images: Sequence[int]) -> list[Reasons | None]:
    """What sets some images of a category apart, by their rows in the store."""
    if source is None or not images:
        return [None] * len(images)
    return [*_reasons(source, images, _usual(source, category))]


def _usual(source: Source, category: str) -> Usual:
    """The mean over normal images of a category, evenly spaced; over any where none is normal."""
    table = source.run.scores.table
    rows = table[table["category"] == category]
    labelled = rows[rows["label"] == LABEL_NORMAL]
    normal = len(labelled) > 0
    chosen = _spaced(labelled if normal else rows)
    figures = [_figures(explanation) for explanation in source.explained(chosen)]
    return Usual(len(chosen), normal, np.concatenate(figures).mean(axis=0))


def _figures(explanation: Explanation) -> np.ndarray:
    """Score, K components, R contributions of each image: (B, 1 + K + R) float64."""
    columns = [explanation.scores, *explanation.components.values()]
    return np.column_stack([*columns, explanation.contributions])


def _spaced(rows: pd.DataFrame) -> list[int]:
    places = np.linspace(0, len(rows) - 1, min(USUAL, len(rows))).round().astype(int)
    return [int(image) for image in rows.index[places]]


def _reasons(source: Source, images: Sequence[int], compared: Usual) -> list[Reasons]:
    """What sets each of some images apart from the usual ones."""
    found = []
    for explanation in source.explained(images):
        kinds = list(explanation.components)
        order = sorted(kinds, key=[*PARTS, *kinds].index)
        of_atoms = len({(row.layer, row.atom) for row in explanation.atoms})
        for image, figures in enumerate(_figures(explanation)):
            score, *others = zip(figures.tolist(), compared.means.tolist(), strict=True)
            parts = [Part(PARTS.get(kind, kind), *others[kinds.index(kind)]) for kind in order]
            if explanation.bias:
                parts.append(Part("constant", explanation.bias, explanation.bias))
            differences = (figures - compared.means)[1 + len(kinds) :]
            atoms = _strongest(explanation, image, differences)
            of_all = float(differences.sum())
            found.append(Reasons(Part("score", *score), parts, atoms, of_atoms, of_all, compared))
    return found


def _strongest(explanation: Explanation, image: int, differences: np.ndarray) -> list[AtomPart]:
    """Atoms by the sum of their parts; an atom may count for the map and for the whole image."""
    sums: dict[tuple[str, int], float] = {}
    for row, difference in zip(explanation.atoms, differences.tolist(), strict=True):
        atom = (row.layer, row.atom)
        sums[atom] = sums.get(atom, 0.0) + difference
    mapped = {(row.layer, row.atom) for row in explanation.atoms if row.component == MAP_GUIDES}
    strongest = sorted(sums, key=lambda atom: -abs(sums[atom]))[:SHOWN]
    return [
        AtomPart(
            atom_name(layer, atom),
            sums[layer, atom],
            explanation.atom_map(image, explanation.finest(layer), atom)
            if (layer, atom) in mapped
            else None,
        )
        for layer, atom in strongest
    ]
