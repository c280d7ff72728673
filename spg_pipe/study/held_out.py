"""Settings of contrast guides and the decision, judged on held-out parts of the auxiliary set.

No target is looked at. Each part in turn is judged by guides, scales and weights made from the
others; a part is a set of a union, a category, a kind of defect, or else a fold. One pass over the
store serves all candidates that share a dictionary and a number of atoms.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.components import Sides
from spg_pipe.decision.fit import Measured, fit_decision, measure
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import COARSE, Decision
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import ClassSums, class_sums, direction, match
from spg_pipe.guides.layer import LayerGuides, SignedAtoms, View
from spg_pipe.metrics import Regions, accumulate, image_metrics
from spg_pipe.recipe.params import DecisionParams, Detection
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

Progress = Callable[[int, int], None]

TOLERANCE = 0.005
"""A candidate must be better by this than an earlier one: smaller differences are chance."""


@dataclass(frozen=True)
class Candidate:
    """Settings to judge."""

    saes: SaeRun
    atoms: int
    decision: DecisionParams


FIGURES = ("image_auroc", "pixel_auroc", "pixel_ap")
PartFigures = dict[str, np.ndarray]
"""Held-out part → (candidates, 3) `FIGURES` by what was made from the others; NaN: undefined."""


def known_mean(values: object, axis: int = 0) -> np.ndarray:
    """Means along an axis over the values that are not NaN; NaN where there is none."""
    array = np.asarray(values, dtype=float)
    count = (~np.isnan(array)).sum(axis=axis)
    total = np.nansum(array, axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def best(merits: np.ndarray, tolerance: float = TOLERANCE) -> int:
    """The candidate to take: the first of those that no other beats by a tolerance.

    Raises
    ------
    SpgError
        If there is nothing to judge by.
    """
    if np.isnan(merits).any():
        raise SpgError(
            "Nothing has anomalous and normal pixels at a quarter of the size, or images of both "
            "classes, so nothing can be chosen. Masks may be too thin: use a larger image_size."
        )
    return int(np.argmax(merits >= merits.max() - tolerance))


def held_out_parts(store: FeatureStore, sums: ClassSums) -> dict[str, np.ndarray]:
    """Name → (n,) bool of the images that are held out together.

    Raises
    ------
    SpgError
        If the set cannot be parted.
    """
    categories = store.array("category").astype(object)
    anomalous = sums.labels == 1
    taught = anomalous & (store.array("mask_state") == MaskState.GIVEN)

    def parts_by(names: np.ndarray, among: np.ndarray) -> dict[str, np.ndarray]:
        """Those that teach where defects are."""
        parts = {str(name): (names == name) & among for name in np.unique(names)}
        return {name: rows for name, rows in parts.items() if (rows & taught).any()}

    for names in (np.array([name.partition("/")[0] for name in categories]), categories):
        parts = parts_by(names, np.ones(len(store), bool))
        if len(parts) > 1:
            return parts
    # Those without a mask are held out with their kind: they teach about images.
    parts = parts_by(store.array("defect").astype(object), anomalous)
    if len(parts) < 2:
        parts = parts_by(np.array([f"fold {fold}" for fold in sums.folds]), anomalous)
    if len(parts) < 2:
        raise SpgError(
            f"{store.path} has {taught.sum()} anomalous images with a mask: too few to hold some "
            "out. Choosing needs at least two."
        )
    normal = np.flatnonzero(sums.labels == 0)
    for number, rows in enumerate(parts.values()):
        rows[normal[number :: len(parts)]] = True
    return parts


def judge_candidates(
    store: FeatureStore,
    candidates: Sequence[Candidate],
    detection: Detection,
    *,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> PartFigures:
    """Judge every candidate on every held-out part.

    Maps are compared with masks at a quarter of S: enough to rank settings, and sixteen times less
    to do. `progress` is told how many parts of all are done.

    Raises
    ------
    SpgError
        If the set cannot be parted, or without a part nothing is left to learn from.
    """
    sums = class_sums(store, detection, device)
    parts = held_out_parts(store, sums)
    makers = {(id(candidate.saes), candidate.atoms): candidate for candidate in candidates}
    sides = {key: _sides(store, maker, sums, parts) for key, maker in makers.items()}
    measured = {key: measure(store, each, device=device) for key, each in sides.items()}
    regions, judged = coarse_masks(store), PartFigures()
    for which, (part, rows) in enumerate(parts.items()):
        figures = []
        for candidate in candidates:
            seen, params = measured[id(candidate.saes), candidate.atoms], candidate.decision
            fit = fit_decision(seen, params, final=which, honest=which, among=~rows)
            figures.append(judge_rows(seen, regions, fit.decision, which, rows))
        judged[part] = np.stack(figures)
        progress(which + 1, len(parts))
    return judged


def judge_rows(
    measured: Measured,
    regions: Mapping[int, Regions],
    decision: Decision,
    which: int,
    chosen: np.ndarray,
) -> np.ndarray:
    """(3,) `FIGURES` of the chosen images (n,) bool, means over categories."""
    rows = np.flatnonzero(chosen)
    values = decision.shares(measured.image_values(decision, which, rows))
    scores = np.sum(list(values.values()), axis=0)
    map_of = partial(finished_map, measured, regions, decision, which)
    categories = measured.categories[rows]
    auroc = image_auroc(measured.labels[rows], categories, scores)
    pixel = pixel_figures(map_of, rows, categories, regions)
    return np.array([auroc, *pixel[: len(FIGURES) - 1]])


def finished_map(
    measured: Measured, regions: Mapping[int, Regions], decision: Decision, which: int, image: int
) -> np.ndarray:
    """An image's map in [0, 1], of the shape of its mask's regions."""
    patches = measured.log_odds(decision, which, np.array([image]))
    return anomaly_maps(patches, measured.size, at=regions[image].shape, log_odds=True)[0]


def image_auroc(labels: np.ndarray, categories: np.ndarray, scores: np.ndarray) -> float:
    """Of images (n,), the mean over categories; NaN if none has both classes."""
    parts = (categories == category for category in np.unique(categories))
    return float(known_mean([image_metrics(labels[rows], scores[rows]).auroc for rows in parts]))


def pixel_figures(
    map_of: Callable[[int], np.ndarray],
    images: np.ndarray,
    categories: np.ndarray,
    regions: Mapping[int, Regions],
) -> np.ndarray:
    """(3,) pixel AUROC, AP and AUPRO@0.3 of those images (n,) whose mask's regions are known.

    Parameters
    ----------
    map_of : callable
        From an image to its map in [0, 1], of the shape of its regions.
    categories : (n,) int
        Figures are means over them.
    """
    figures = [[math.nan] * 3]
    for category in np.unique(categories):
        known = [image for image in images[categories == category].tolist() if image in regions]

        def pairs(known: list[int] = known) -> Iterator[tuple[np.ndarray, Regions]]:
            for image in known:
                yield map_of(image), regions[image]

        if known:
            pixel = accumulate(pairs, "histogram")
            figures.append([pixel.auroc, pixel.ap, pixel.aupro[0.3]])
    return known_mean(figures)


def _sides(
    store: FeatureStore, maker: Candidate, sums: ClassSums, parts: Mapping[str, np.ndarray]
) -> dict[str, Sides]:
    """By layer, directions (parts, D) made without each part.

    Zeros where a class is missing: such images differ in nothing that is added up. The basis is
    that of guides made from all: its atoms know the labels of the part, but a patch's distance to
    others of its image hardly depends on which atoms they are.
    """
    sides = {}
    for layer, shape in store.spec.layers.items():
        atoms, dead = maker.saes.layers[layer].atoms.detach().cpu(), maker.saes.dead[layer]
        pairs: dict[View, SignedAtoms] = {}
        directions: dict[View, Tensor] = {}
        for view in sums.views:
            everything, *without = [
                match(direction(sums, layer, view, chosen), atoms, dead, maker.atoms)
                for chosen in (None, *(~rows for rows in parts.values()))
            ]
            pairs[view] = everything
            directions[view] = torch.stack([pair.side(atoms) for pair in without])
        for part, row in zip(parts, directions["patches"], strict=True):
            if not bool(row.any()):
                raise SpgError(
                    f"{store.path}: without {part} no category has patches with and without a "
                    "defect, so nothing can be chosen on it. Add another auxiliary category."
                )
        sides[layer] = Sides(directions, LayerGuides.of_contrast(pairs, atoms, shape.grid).basis)
    return sides


def coarse_masks(store: FeatureStore) -> dict[int, Regions]:
    """Image → regions of its mask at S/4, where it is known."""
    return {row: Regions.of(mask) for row, mask in coarse_pixels(store)}


def coarse_pixels(store: FeatureStore) -> Iterator[tuple[int, np.ndarray]]:
    """Each image with a known mask, and (S/4, S/4) bool of it.

    A quarter of a pixel makes it defective: cracks are thin.
    """
    side, states = max(1, store.image_size // COARSE), store.array("mask_state")
    for start in range(0, len(store), 64):
        rows = np.arange(start, min(start + 64, len(store)))
        masks = torch.from_numpy(store.masks(rows)).float()[:, None]
        coarse = (F.adaptive_avg_pool2d(masks, side)[:, 0] >= 0.25).numpy()
        for row, mask in zip(rows.tolist(), coarse, strict=True):
            if states[row] != MaskState.MISSING:
                yield row, mask
