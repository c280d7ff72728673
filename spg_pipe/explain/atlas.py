"""What each atom of a detector, or of its whole dictionary, looks for on some stores.

One pass over the stores measures the SAE's latents, the projections on the detector's atoms, their
contributions to the scores and what general and specific factors are made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import Batch
from spg_pipe.explain.atlas_tables import (
    Described,
    LayerAtoms,
    atom_table,
    category_table,
    described_table,
)
from spg_pipe.explain.crops import Place
from spg_pipe.explain.dictionary import layout_2d
from spg_pipe.explain.factors import MAP_GUIDES, Factors, measure_factors
from spg_pipe.explain.group_sums import GroupSums
from spg_pipe.explain.measure import Progress, measure
from spg_pipe.explain.shares import Shares
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore


@dataclass(frozen=True)
class Atlas:
    """Everything that an atlas folder holds but its pictures."""

    atoms: pd.DataFrame
    """A row for each atom and category; `category` is null for all together."""
    categories: pd.DataFrame
    """A row for each layer and category: how well the SAE rebuilds it, and how it is used."""
    layouts: dict[str, np.ndarray]
    """Layer → (C, 2) float32: a map of the dictionary."""
    factors: Factors
    strips: dict[str, list[Place]]
    """Name of a strip of crops → what it shows."""


def describe(
    detector: Detector,
    saes: SaeRun,
    others: Sequence[SaeRun],
    stores: Sequence[FeatureStore],
    *,
    every: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Atlas:
    """Describe a detector's atoms on some stores.

    An `SpgError` if a store lacks a layer of the detector.

    Parameters
    ----------
    saes : SaeRun
        Those that the detector's guides are made of.
    others : sequence of SaeRun
        Of other seeds.
    every : bool
        Every latent gets a row, not only the detector's atoms.
    progress : callable (images done, images in all), optional
    """
    chosen = [
        LayerAtoms.of(detector, layer, len(saes.dead[layer]), every=every)
        for layer in detector.layers
    ]
    measures = [each.measures(detector, saes, device) for each in chosen]
    shares = Shares(detector, stores)
    sums = [GroupSums.of(store, detector.record.detection) for store in stores]
    beside = partial(_add, stores, shares, sums)
    every_measure = [each for of_layer in measures for each in of_layer]
    found = iter(measure(stores, every_measure, beside=beside, device=device, progress=progress))
    factors = measure_factors(detector, sums, saes)
    generality = _generality(factors)
    tables, categories, layouts = [], [], {}
    strips: dict[str, list[Place]] = {}
    for atoms, of_layer in zip(chosen, measures, strict=True):
        activity, *projections = (next(found) for _ in of_layer)
        layer = atoms.layer
        layouts[layer] = layout_2d(saes.layers[layer].atoms.detach(), saes.dead[layer])
        described = Described(atoms, activity, projections[0] if projections else None, shares)
        table = described_table(described, stores, strips)
        fixed = atom_table(atoms, saes, others, layouts[layer])
        table = table.merge(fixed, on="atom", how="left")
        tables.append(table.merge(generality, on=["layer", "atom"], how="left"))
        categories.append(category_table(layer, activity, saes))
    return Atlas(
        pd.concat(tables, ignore_index=True),
        pd.concat(categories, ignore_index=True),
        layouts,
        factors,
        strips,
    )


def _add(
    stores: Sequence[FeatureStore], shares: Shares, sums: Sequence[GroupSums], batch: Batch
) -> None:
    """What is measured beside the codes."""
    shares.add(batch)
    for key in stores[batch.store].spec.backbone.token_keys:
        tokens, share = batch.tokens[key.name], batch.shares[key.name]
        sums[batch.store].add(key, batch.images, tokens, share.to(tokens.device))


def _generality(factors: Factors) -> pd.DataFrame:
    """layer, atom and generality in the map."""
    columns = ["layer", "atom", "generality"]
    table = factors.generality
    if table.empty:
        return pd.DataFrame({"layer": [""], "atom": [0], "generality": [np.nan]})
    return table.loc[table["component"] == MAP_GUIDES, columns]
