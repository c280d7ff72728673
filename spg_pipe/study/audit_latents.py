"""Propose and audit: do latents that find defects on some images find them on others?

The protocol of saev: latents are ranked by their precision (AP) on one half of the images; the best
are judged by the other half, and here also by every target. The null is the same with each mask
moved to another image of its category, by one permutation that may leave some in their place: what
is left is where defects tend to lie, and chance.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.explain.codes import Code
from spg_pipe.explain.groups import ENDS, GROUPS, drawn, image_groups
from spg_pipe.explain.histograms import BINS, DRAWS, binned_precision
from spg_pipe.explain.measure import bins_of
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images
from spg_pipe.study.audit_case import Case
from spg_pipe.study.audit_dictionaries import RANDOM
from spg_pipe.study.audit_tables import Row

CLAIM = "propose and audit"
BEST = (10, 25, 50, 100)
"""Latents that are proposed, of all layers together."""
MOST_IMAGES = 240
"""Of each set, drawn by chance."""
AUDITED, NULL = "masks", "moved masks"
_CHANNELS = {AUDITED: 1, NULL: 2}
_IMAGES = 8
_FIRST = 32
"""Images that the bins are chosen from."""


class Sample(NamedTuple):
    """Some images of a store, and what their masks say."""

    store: FeatureStore
    images: np.ndarray
    """(n,) rows of the store."""
    groups: np.ndarray
    """(n,) in 0 … GROUPS − 1."""
    moved: np.ndarray
    """(n,) a permutation within categories: whose mask each image has under the null."""
    defect_shares: Mapping[str, Tensor]
    """Layer → (n, N) float32: share of each patch's pixels that are defect."""

    @classmethod
    def of(cls, store: FeatureStore, seed: int) -> "Sample":
        """Images with a known mask."""
        rng, taught = np.random.default_rng(seed), labelled_images(store)
        images = np.sort(taught[rng.permutation(len(taught))[:MOST_IMAGES]])
        categories = store.array("category").astype(object)[images]
        moved = np.arange(len(images))
        for category in np.unique(categories):
            own = np.flatnonzero(categories == category)
            moved[own] = rng.permutation(own)
        masks = torch.from_numpy(store.masks(images)).float()[:, None]
        shares = {
            layer: F.adaptive_avg_pool2d(masks, shape.grid).flatten(1)
            for layer, shape in store.spec.layers.items()
        }
        return cls(store, images, image_groups(store)[images], moved, shares)

    def tokens(self, layer: str, rows: np.ndarray) -> Iterator[Tensor]:
        """(m·N, D) float32 of some images of the sample, by `_parts` of m images."""
        for part in _parts(rows):
            tokens = self.store.tokens(layer, self.images[part])
            yield torch.from_numpy(tokens).float().flatten(0, 1)


class Counts(NamedTuple):
    """Patches of a sample by the value of each latent."""

    cells: np.ndarray
    """(GROUPS, 3, C, BINS) float32: all, and the anomalous ones by their masks, or moved masks."""
    patches: np.ndarray
    """(GROUPS, 3) float64: with a value or without."""

    def precision(self, weights: np.ndarray, masks: str, latents: np.ndarray) -> np.ndarray:
        """(R, n) AP of n latents, the groups weighted in R ways (R, GROUPS)."""
        channels = [0, _CHANNELS[masks]]
        cells = self.cells[:, channels][:, :, latents]
        resampled = (weights @ cells.reshape(GROUPS, -1)).reshape(len(weights), *cells.shape[1:])
        return binned_precision(resampled, weights @ self.patches[:, channels])

    def base_rate(self, groups: np.ndarray, masks: str) -> float:
        """Share of anomalous patches of some groups (n,)."""
        of_groups = self.patches[groups].sum(axis=0)
        return float(of_groups[_CHANNELS[masks]] / of_groups[0])


class Proposed(NamedTuple):
    """The best latents of all layers, the best first."""

    layers: np.ndarray
    """(n,) int: numbers of layers."""
    latents: np.ndarray
    """(n,) int"""


def latents(case: Case) -> Iterator[Row]:
    """Mean AP of the proposed latents of every dictionary but `RANDOM`, on all sets with masks.

    Those of the auxiliary set are of the half of its images that proposed nothing.
    """
    stores = {case.aux: case.store} | case.targets
    known = {
        name: Sample.of(store, case.seed)
        for name, store in stores.items()
        if (store.array("mask_state") == MaskState.GIVEN).any()
    }
    first = case.store.layers[0]
    samples = {name: sample for name, sample in known.items() if sample.defect_shares[first].any()}
    half = np.arange(GROUPS) % 2
    for name in [name for name in case.dictionaries if name != RANDOM]:
        saes, proposed = case.dictionaries[name], dict[str, Proposed]()
        for place, sample in samples.items():
            counted = [
                count(sample, layer, case.code(name, layer), len(sae.dictionary))
                for layer, sae in saes.layers.items()
            ]
            if place == case.aux:
                proposed = {masks: propose(counted, masks, half) for masks in (AUDITED, NULL)}
            groups = np.flatnonzero(half == 0) if place == case.aux else np.arange(GROUPS)
            for masks, best in proposed.items():
                found = audited(counted, masks, best, groups)
                row = case.row(CLAIM, place, name)
                for n in (n for n in BEST if n <= found.shape[1]):
                    means = found[:, :n].mean(axis=1)
                    low, high = np.nanquantile(means[1:], ENDS).tolist()
                    yield row(masks, n, "mean_ap", float(means[0]), low, high)
                yield row(masks, max(BEST), "base_rate", counted[0].base_rate(groups, masks))


def count(sample: Sample, layer: str, code: Code, latents: int) -> Counts:
    """One pass over a sample's tokens of a layer."""
    own = sample.defect_shares[layer]
    shares = torch.stack([torch.ones_like(own), own, own[torch.from_numpy(sample.moved)]], dim=1)
    groups = torch.from_numpy(sample.groups)
    patches = torch.zeros(GROUPS, 3, dtype=torch.float64)
    patches.index_add_(0, groups, shares.sum(dim=2, dtype=torch.float64))
    cells, size = torch.zeros(GROUPS, 3, latents * BINS), latents * BINS
    rows = np.arange(len(groups))
    some = np.unique(np.linspace(0, rows[-1], _FIRST).astype(int))
    bins = bins_of(sample.tokens(layer, some), code, latents)
    for part, tokens in zip(_parts(rows), sample.tokens(layer, rows), strict=True):
        entries = code(tokens)
        place = groups[part].repeat_interleave(shares.shape[2])[entries.token] * 3 * size
        place += bins.cells(entries)
        for channel in range(3):
            weights = shares[part, channel].flatten()[entries.token]
            cells.view(-1).scatter_add_(0, place + channel * size, weights)
    return Counts(cells.view(GROUPS, 3, latents, BINS).numpy(), patches.numpy())


def propose(counted: Sequence[Counts], masks: str, weights: np.ndarray) -> Proposed:
    """The latents with the highest AP on some groups, weights (GROUPS,) 0 or 1."""
    found = [
        np.nan_to_num(each.precision(weights[None], masks, np.arange(each.cells.shape[2]))[0])
        for each in counted
    ]
    layers = np.repeat(np.arange(len(found)), [len(each) for each in found])
    numbers = np.concatenate([np.arange(len(each)) for each in found])
    best = np.argsort(-np.concatenate(found), kind="stable")[: max(BEST)]
    return Proposed(layers[best], numbers[best])


def audited(
    counted: Sequence[Counts], masks: str, best: Proposed, groups: np.ndarray
) -> np.ndarray:
    """(1 + DRAWS, n) AP of the proposed latents on some groups (m,), and on these drawn anew."""
    weights = np.zeros((1 + DRAWS, GROUPS), np.float32)
    weights[0, groups] = 1
    weights[1:, groups] = drawn(len(groups), DRAWS)
    found = np.empty((len(weights), len(best.latents)))
    for number, each in enumerate(counted):
        own = np.flatnonzero(best.layers == number)
        for part in np.array_split(own, -(-len(own) // _IMAGES) or 1):
            found[:, part] = each.precision(weights, masks, best.latents[part])
    return found


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // _IMAGES))
