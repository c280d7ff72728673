"""Contrast guides: the difference of two class means, written with a few atoms in closed form.

The published guides are trained until they separate the auxiliary set's own defects; what they
learn beyond the direction from normal to anomalous does not carry over to other products. Here the
direction itself is taken, δ = unit(anomalous mean) − unit(normal mean) of unit tokens, and matched
by k atoms of the dictionary with signs. Atoms that point towards the anomaly make up the anomaly
guide, the others the normal guide, so that for a unit token x the score x·(g_a − g_n) is a sum over
k atoms (docs/method.md §7).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.guides.layer import SignedAtoms, View
from spg_pipe.guides.model import detection_feature, unit
from spg_pipe.recipe.params import Detection
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images, ordered_batches, sources_of

_MATCHED = 1e-6
"""Of the target's length: what float32 leaves of an exact match."""
FOLDS = 5
"""Parts of the auxiliary images; each is judged by guides made from the others."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerSums:
    """What one layer's class means are made of, image by image, so that any images can be left out.

    All tokens are scaled to unit length first.
    """

    patches: Tensor
    """(n, 2, D) float32: sums of the patches without a defect, and of all, each weighted by the
    defect's share of its area."""
    counts: Tensor
    """(n, 2) float32: sums of their weights."""
    features: Tensor
    """(n, D) float32: the images' detection features."""


@dataclass(frozen=True)
class ClassSums:
    """Sums of every layer, and which images belong together."""

    layers: dict[str, LayerSums]
    detection: Detection
    """Which feature of an image its layers hold."""
    categories: np.ndarray
    """(n,) int: number of each image's category."""
    labels: np.ndarray
    """(n,) int: 0 normal, 1 anomalous, 255 unknown."""
    folds: np.ndarray
    """(n,) int in 0 … FOLDS − 1: kinds of defects, or the images that defects were painted on, are
    spread over all folds."""

    @property
    def views(self) -> tuple[View, View]:
        """What can have guides."""
        return self.detection, "patches"


def class_sums(
    store: FeatureStore,
    detection: Detection = "cls",
    device: str = "cpu",
    progress: Progress | None = None,
) -> ClassSums:
    """One pass over a labelled store.

    Patches count where the mask is known, whole images wherever the label is.
    `detection` is the images' feature, see `detection_feature`.
    """
    labels = store.array("label").astype(np.int64)
    taught = labelled_images(store)
    parts: dict[str, list[tuple[Tensor, ...]]] = {layer: [] for layer in store.layers}
    grids = {layer: store.spec.layers[layer].grid for layer in store.layers}
    with torch.inference_mode():
        for images, tokens in ordered_batches(sources_of(store, device, "none"), 8):
            masks = torch.from_numpy(store.masks(images)).to(device).float()[:, None]
            known = torch.from_numpy(np.isin(images, taught)).to(device)
            for layer, values in tokens.items():
                share = F.adaptive_avg_pool2d(masks, grids[layer]).flatten(1)
                parts[layer].append(token_sums(values, share, known, detection))
            if progress:
                progress(int(images[-1]) + 1, len(store))
    layers = {
        layer: LayerSums(*(torch.cat(column).cpu() for column in zip(*found, strict=True)))
        for layer, found in parts.items()
    }
    categories = np.unique(store.array("category").astype(object), return_inverse=True)[1]
    return ClassSums(layers, detection, categories, labels, _folds(store))


def token_sums(
    tokens: Tensor, share: Tensor, known: Tensor, detection: Detection
) -> tuple[Tensor, ...]:
    """A batch's rows of `LayerSums`, of tokens (B, 1 + N, D) and shares (B, N) of defects."""
    scale = 1 / tokens.norm(dim=-1).clamp_min(1e-8)
    # A patch that is partly defective is neither normal nor wholly anomalous.
    normal = ((share == 0) & known[:, None]).float()
    weights = torch.stack([normal, share * known[:, None]], 1)
    sums = (weights * scale[:, None, 1:]) @ tokens[:, 1:]
    return sums, weights.sum(2), unit(detection_feature(tokens, detection))


def _folds(store: FeatureStore) -> np.ndarray:
    """Every kind of defect of every category dealt out over the folds, in the store's order.

    Of a synthetic set its source images: a copy is not judged by guides that know its original.
    """
    if sources := store.spec.sources:
        originals = [sources.get(path, path) for path in store.array("path").tolist()]
        return pd.factorize(np.array(originals, object))[0] % FOLDS
    kinds = store.table.groupby(["category", "label", "defect"], dropna=False)
    return kinds.cumcount().to_numpy() % FOLDS


def direction(sums: ClassSums, layer: str, view: View, chosen: np.ndarray | None = None) -> Tensor:
    """δ of a view: from the unit normal mean to the unit anomalous mean.

    A mean over categories of each category's mean, so that a large set does not outweigh the
    others; categories without one of the classes are left out, or the direction would be that
    from one product to another.

    Parameters
    ----------
    view : one of the sums' `views`
    chosen : (n,) bool, optional
        The images to learn from. Default: all.

    Returns
    -------
    (D,) float32; zeros if no category has both classes
    """
    pairs = []
    for category in np.unique(sums.categories).tolist():
        rows = sums.categories == category
        rows = rows if chosen is None else rows & chosen
        means = [_mean(sums, layer, view, rows, anomalous) for anomalous in (False, True)]
        if means[0] is not None and means[1] is not None:
            pairs.append(torch.stack([means[0], means[1]]))
    if not pairs:
        return torch.zeros_like(sums.layers[layer].features[0])
    normal, anomalous = unit(torch.stack(pairs).mean(dim=0))
    return (anomalous - normal).float()


def _mean(
    sums: ClassSums, layer: str, view: View, rows: np.ndarray, anomalous: bool
) -> Tensor | None:
    """(D,) float64 mean of one class of one category, or None where it has none."""
    values = sums.layers[layer]
    if view == "patches":
        chosen = torch.from_numpy(rows)
        count = values.counts[chosen, int(anomalous)].double().sum()
        total = values.patches[chosen, int(anomalous)].double().sum(0)
        return total / count if count > 0 else None
    rows = rows & (sums.labels == int(anomalous))
    return values.features[torch.from_numpy(rows)].double().mean(0) if rows.any() else None


def signed_pursuit(target: Tensor, atoms: Tensor, count: int) -> SignedAtoms:
    """Match a vector with signed atoms by orthogonal matching pursuit.

    The atom that fits the rest best is added and all weights are fitted anew, `count` times or
    until nothing is left.

    Parameters
    ----------
    target : (D,)
    atoms : (C, D)
        Of unit length.
    count : int
        Atoms to use, at most C.

    Returns
    -------
    SignedAtoms
        Whose anomaly minus normal guide is the match.

    Source: Pati, Rezaiifar and Krishnaprasad, 1993.
    """
    *_, last = pursuit_steps(target, atoms, count)
    return last


def pursuit_steps(target: Tensor, atoms: Tensor, count: int) -> Iterator[SignedAtoms]:
    """What `signed_pursuit` gives with 0, 1, … `count` atoms, or until nothing is left."""
    goal, table = target.double(), atoms.double()
    rest, chosen = goal.clone(), torch.zeros(0, dtype=torch.long)
    weights = torch.zeros(0, dtype=torch.float64)
    while True:
        order = chosen.argsort()
        codes = weights[order].float()
        yield SignedAtoms(chosen[order], torch.stack([(-codes).relu(), codes.relu()]))
        if len(chosen) == min(count, len(atoms)):
            return
        fit = (table @ rest).abs()
        fit[chosen] = -1
        if fit.max() <= _MATCHED * goal.norm():
            return
        chosen = torch.cat([chosen, fit.argmax()[None]])
        weights = torch.linalg.lstsq(table[chosen].t(), goal[:, None], driver="gelsd").solution[
            :, 0
        ]
        rest = goal - weights @ table[chosen]


def match(target: Tensor, atoms: Tensor, dead: Tensor, count: int) -> SignedAtoms:
    """`signed_pursuit` among the atoms that are not dead, (C,) bool; no atoms for zeros."""
    alive = torch.nonzero(~dead)[:, 0]
    pair = signed_pursuit(target, atoms[alive], count)
    return SignedAtoms(alive[pair.atom_ids], pair.codes)
