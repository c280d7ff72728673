"""The rows of an atlas: which atoms are described, what is fixed of each, and what was measured."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import TOP, Activity, TopPatches
from spg_pipe.explain.codes import projection_code, sae_code
from spg_pipe.explain.crops import Place
from spg_pipe.explain.dictionary import matches, nearest_atoms
from spg_pipe.explain.measure import Measure, Rebuild
from spg_pipe.explain.shares import Shares
from spg_pipe.sae.model import sae_input
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

TOP_OF_CATEGORY = 4
"""Crops of a category; of all images together there are `TOP`."""
STRONGEST = 64
"""Atoms of a layer, those with the largest coefficients of a view, whose projections are measured
and that have crops by category: trained guides may have thousands."""
NEAREST = 6
_PROJECTED = ("projection_ap", "projection_ap_low", "projection_ap_high")


@dataclass(frozen=True)
class LayerAtoms:
    """What is described of a layer."""

    layer: str
    ids: np.ndarray
    """(A,) int64: the latents that get a row."""
    used: np.ndarray
    """(M,) int64: those of the detector."""
    coefficients: np.ndarray
    """(M,) float64 of the patches' guides."""
    detection: np.ndarray
    """(M,) float64 of the images'; zeros where they have none."""
    projected: np.ndarray
    """(P,) int: rows of `used` whose projections on patches are measured."""
    pictured: np.ndarray
    """(Q,) int: rows of `used` that have crops by category."""

    @classmethod
    def of(cls, detector: Detector, layer: str, latents: int, *, every: bool) -> "LayerAtoms":
        """The detector's atoms of a layer, or every latent."""
        guides, cosines = detector.layers[layer], not detector.contrast
        patches = guides.coefficients("patches", as_cosines=cosines).numpy()
        detection = np.zeros_like(patches)
        if (view := detector.record.detection) in guides.pairs:
            detection = guides.coefficients(view, as_cosines=cosines).numpy()
        used = guides.atom_ids.numpy()
        ids = np.arange(latents) if every else used
        projected = _strongest(patches)
        pictured = np.union1d(projected, _strongest(detection))
        return cls(layer, ids, used, patches, detection, projected, pictured)

    def measures(self, detector: Detector, saes: SaeRun, device: str) -> list[Measure]:
        """Of the SAE's latents; and, if there are any, of signed projections on atoms."""
        sae, params = deepcopy(saes.layers[self.layer]).to(device), saes.record.sae
        norm = params.input_norm if params else "none"
        rebuild = Rebuild(sae.atoms.detach(), lambda x: sae_input(x, norm))
        code = sae_code(sae, norm)
        measures = [Measure(self.layer, code, len(sae.atoms), rebuild=rebuild)]
        if len(self.projected):
            signs = torch.from_numpy(np.sign(self.coefficients[self.projected])).float()
            vectors = signs[:, None] * detector.layers[self.layer].atoms[self.projected]
            code = projection_code(vectors.to(device))
            measures.append(Measure(self.layer, code, len(vectors), dense=True))
        return measures


@dataclass(frozen=True)
class Described:
    """A layer's atoms with what was measured of them."""

    atoms: LayerAtoms
    activity: Activity
    """Of the SAE's C latents."""
    projections: Activity | None
    """Of the projections on `atoms.projected`."""
    shares: Shares


def described_table(
    described: Described, stores: Sequence[FeatureStore], strips: dict[str, list[Place]]
) -> pd.DataFrame:
    """What was measured: a row for each atom of all images together, then by category.

    The strips of crops are added to `strips`; the table has their names, or null.
    """
    categories = described.activity.categories
    parts = [_of_category(described, None)]
    parts += [_of_category(described, name) for name in categories]
    for number, (part, name) in enumerate(zip(parts, (None, *categories), strict=True)):
        of = "" if name is None else f"-c{number}"
        _add_crops(part, described, name, of, stores, strips)
    return pd.concat(parts, ignore_index=True)


def _of_category(described: Described, category: str | None) -> pd.DataFrame:
    atoms, activity, ids = described.atoms, described.activity, described.atoms.ids
    rows = activity.rows(category)
    rate, normal, anomalous = activity.rates(category)
    fired = activity.fired[rows].sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean = activity.total[rows].sum(axis=0) / fired
    low, high = activity.interval(category, ids)
    largest = activity.best(category).value[:, 0]
    values = {
        **described.shares.of(atoms.layer, ids, category)._asdict(),
        "patches": int(activity.all_patches[rows].sum()),
        "patches_anomalous": float(activity.patches[rows, :, 1].sum()),
        "rate": rate[ids],
        "rate_normal": normal[ids],
        "rate_anomalous": anomalous[ids],
        "mean_active": mean[ids],
        "max": np.where(np.isfinite(largest), largest, 0)[ids],
        "ap": activity.average_precision(category)[ids],
        "ap_low": low,
        "ap_high": high,
        "base_rate": activity.base_rate(category),
    }
    projected = {name: np.full(len(ids), np.nan) for name in _PROJECTED}
    if described.projections is not None:
        at = np.searchsorted(ids, atoms.used[atoms.projected])
        found = (
            described.projections.average_precision(category),
            *described.projections.interval(category),
        )
        for column, figures in zip(projected.values(), found, strict=True):
            column[at] = figures
    named = {"layer": atoms.layer, "atom": ids, "category": category}
    return pd.DataFrame(named | values | projected)


def _add_crops(
    table: pd.DataFrame,
    described: Described,
    category: str | None,
    suffix: str,
    stores: Sequence[FeatureStore],
    strips: dict[str, list[Place]],
) -> None:
    """Columns `crops` and `projection_crops`; by category of the strongest atoms alone."""
    atoms, count = described.atoms, TOP if category is None else TOP_OF_CATEGORY
    of_latents = atoms.ids if category is None else atoms.used[atoms.pictured]
    measured = [("crops", "", described.activity, of_latents, of_latents)]
    if described.projections is not None:
        rows = np.arange(len(atoms.projected))
        of_atoms = atoms.used[atoms.projected]
        measured.append(("projection_crops", "-p", described.projections, of_atoms, rows))
    columns = {name: np.full(len(atoms.ids), None) for name in ("crops", "projection_crops")}
    for column, kind, activity, ids, rows in measured:
        top = activity.best(category)
        for at, row in zip(np.searchsorted(atoms.ids, ids).tolist(), rows.tolist(), strict=True):
            if places := _places(activity, top, row, count, stores):
                name = f"{atoms.layer}-{atoms.ids[at]}{kind}{suffix}"
                strips[name], columns[column][at] = places, name
    for column, names in columns.items():
        table[column] = names


def _places(
    activity: Activity, top: TopPatches, row: int, count: int, stores: Sequence[FeatureStore]
) -> list[Place]:
    found = []
    for slot in np.flatnonzero(np.isfinite(top.value[row, :count])).tolist():
        store, name = activity.sources[int(top.source[row, slot])]
        grid = stores[store].spec.layers[name].grid
        found.append(Place(store, int(top.image[row, slot]), int(top.patch[row, slot]), grid))
    return found


def atom_table(
    atoms: LayerAtoms, saes: SaeRun, others: Sequence[SaeRun], layout: np.ndarray
) -> pd.DataFrame:
    """What is fixed of each atom: coefficients, neighbours, other seeds' dictionaries."""
    layer, ids = atoms.layer, atoms.ids
    dictionary, dead = saes.layers[layer].atoms.detach(), saes.dead[layer]
    nearest = nearest_atoms(dictionary, NEAREST, dead)
    matched = matches(
        dictionary,
        [other.layers[layer].atoms.detach() for other in others],
        dead,
        [other.dead[layer] for other in others],
    )
    coefficients = np.full((2, len(dictionary)), np.nan)
    coefficients[:, atoms.used] = atoms.coefficients, atoms.detection
    sides = np.where(coefficients[0] == 0, coefficients[1], coefficients[0])[ids]
    there = [row >= 0 for row in nearest.ids[ids]]
    return pd.DataFrame(
        {
            "atom": ids,
            "in_detector": np.isin(ids, atoms.used),
            "coefficient": coefficients[0][ids],
            "detection_coefficient": coefficients[1][ids],
            "side": np.select([sides > 0, sides < 0], ["anomaly", "normal"], ""),
            "best_cosine": matched.mean[ids],
            "seeds": len(others),
            "reproduced": matched.reproduced[ids],
            "nearest": [
                row[known].tolist() for row, known in zip(nearest.ids[ids], there, strict=True)
            ],
            "nearest_cosine": [
                row[known].tolist() for row, known in zip(nearest.cosines[ids], there, strict=True)
            ],
            "x": layout[ids, 0],
            "y": layout[ids, 1],
        }
    )


def category_table(layer: str, activity: Activity, saes: SaeRun) -> pd.DataFrame:
    """How well the SAE rebuilds all together and each category, and how its latents are used."""
    k = saes.layers[layer].k
    rows = []
    for category in (None, *activity.categories):
        chosen = activity.rows(category)
        patches, rebuilt = int(activity.all_patches[chosen].sum()), activity.rebuilt
        sums = rebuilt.sums[chosen].sum(axis=0)
        error = rebuilt.error[chosen].sum()
        variance = rebuilt.squares[chosen].sum() - (sums @ sums) / patches
        fired = np.sort(activity.fired[chosen].sum(axis=0))[::-1]
        rows.append(
            {
                "layer": layer,
                "category": category,
                "images": int(activity.images[chosen].sum()),
                "patches": patches,
                "r2": 1 - error / max(variance, 1e-12),
                "mse": error / (patches * len(sums)),
                "cosine": rebuilt.cosine[chosen].sum() / patches,
                "usage_mean": fired.mean() / patches,
                "usage_max": fired[0] / patches,
                "top_k_rate": fired[:k].sum() / max(fired.sum(), 1),
            }
        )
    return pd.DataFrame(rows)


def _strongest(coefficients: np.ndarray) -> np.ndarray:
    """Rows of the largest |coefficients| that are not 0, in order."""
    rows = np.argsort(-np.abs(coefficients), kind="stable")[:STRONGEST]
    return np.sort(rows[coefficients[rows] != 0])
