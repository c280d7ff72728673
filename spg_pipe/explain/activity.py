"""What latents do on the patches of stores: how often and how strongly they fire, and how well each
finds defects.

Nothing grows with the number of images: values are counted in bins, by category and by group of
images, so that intervals can be drawn over groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.explain.codes import Active
from spg_pipe.explain.groups import GROUPS
from spg_pipe.explain.histograms import Bins, binned_precision, resampled_precision

TOP = 8
"""Patches kept of each latent and category, one an image."""


@dataclass(frozen=True)
class TopPatches:
    """The patches where each latent is largest, one an image: (..., C, TOP) each."""

    value: np.ndarray
    """float32, falling; −inf where there are no more."""
    source: np.ndarray
    """int32: number in `Activity.sources`."""
    image: np.ndarray
    """int32: row in that store."""
    patch: np.ndarray
    """int32: row-major on the patch grid."""

    @classmethod
    def none(cls, categories: int, latents: int) -> "TopPatches":
        """Of no image yet: (K, C, TOP)."""
        shape = (categories, latents, TOP)
        places = (np.zeros(shape, np.int32) for _ in range(3))
        return cls(np.full(shape, -np.inf, np.float32), *places)

    def of(self, categories: slice) -> "TopPatches":
        """Of some categories together: (C, TOP)."""
        merged = np.concatenate(self.value[categories], axis=1)
        order = np.argsort(-merged, axis=1, kind="stable")[:, :TOP]
        kept = (np.concatenate(part[categories], axis=1) for part in vars(self).values())
        return TopPatches(*(np.take_along_axis(part, order, axis=1) for part in kept))

    def add(
        self, source: int, images: np.ndarray, category: np.ndarray, patches: int, entries: Active
    ) -> None:
        """Each image's largest value of every latent competes with those kept of its category.

        Parameters
        ----------
        source : int
            What the tokens are of: a number in `Activity.sources`.
        images, category : (B,) int
        patches : int
            Of an image: token B · patches + patch of `entries`.
        """
        latents = self.value.shape[1]
        # Of each image and latent the largest value; of equal ones the first patch.
        order = entries.value.sort(descending=True, stable=True).indices
        cells = (entries.token // patches) * latents + entries.latent
        held, first = np.unique(cells[order].numpy(), return_index=True)
        best, shape = order.numpy()[first], (len(images), latents)
        value = np.full(shape, -np.inf, np.float32)
        value.flat[held] = entries.value.numpy()[best]
        patch = np.zeros(shape, np.int32)
        patch.flat[held] = entries.token.numpy()[best] % patches
        image = np.broadcast_to(images[:, None].astype(np.int32), shape)
        candidates = (value, np.full(shape, source, np.int32), image, patch)
        for number in np.unique(category).tolist():
            rows, kept = category == number, list(vars(self).values())
            both = [
                np.concatenate([old[number], new[rows].T], axis=1)
                for old, new in zip(kept, candidates, strict=True)
            ]
            ranked = np.argsort(-both[0], axis=1, kind="stable")[:, :TOP]
            for old, merged in zip(kept, both, strict=True):
                old[number] = np.take_along_axis(merged, ranked, axis=1)


class Batch(NamedTuple):
    """B images of a store."""

    store: int
    images: np.ndarray
    """(B,) rows in the store."""
    category: np.ndarray
    """(B,) int"""
    group: np.ndarray
    """(B,) int"""
    known: np.ndarray
    """(B,) bool: whether the mask is known."""
    tokens: Mapping[str, Tensor]
    """Name of tokens → (B, 1 + N, D) float32"""
    shares: Mapping[str, Tensor]
    """Name of tokens → (B, N) float32 on the CPU: share of each patch's pixels that are defect; 0
    where the mask is not known."""


class Coded(NamedTuple):
    """What a code says of a batch's B·N patch tokens of one name."""

    source: int
    """What the tokens are of: a number in `Activity.sources`."""
    entries: Active
    """On the CPU."""
    sums: tuple[Tensor, ...]
    """The `rebuilt_sums`; empty if nothing is rebuilt."""


class Rebuilt(NamedTuple):
    """Sums over the patch tokens x of each of K categories, and what is rebuilt of them, x̂."""

    error: np.ndarray
    """(K,) Σ‖x − x̂‖²"""
    squares: np.ndarray
    """(K,) Σ‖x‖²"""
    sums: np.ndarray
    """(K, D) Σx"""
    cosine: np.ndarray
    """(K,) Σ cosine of x and x̂"""


class Activity:
    """What C latents do on the patches of some stores, by category. K: number of categories.

    Its arrays are filled while images stream by; their size does not depend on how many there are.

    Parameters
    ----------
    categories : K names
    sources : (number of a store, name of its tokens) of what is passed over
    bins : of C latents
    dim : int
        D, the width of the tokens.
    """

    def __init__(
        self,
        categories: tuple[str, ...],
        sources: tuple[tuple[int, str], ...],
        bins: Bins,
        dim: int,
    ) -> None:
        self.categories, self.sources, self.bins = categories, sources, bins
        count, latents = len(categories), len(bins.low)
        self.counts = np.zeros((count, GROUPS, 2, latents, bins.count), np.float32)
        """Patches with a value, by bin; all, and the anomalous ones. Images without a known mask
        are in neither."""
        self.patches = np.zeros((count, GROUPS, 2))
        """The same of patches with a value or without."""
        self.images = np.zeros(count, np.int64)
        self.all_patches = np.zeros(count, np.int64)
        """Also of images whose mask is not known; so are those below."""
        self.fired = np.zeros((count, latents))
        """Patches with a value."""
        self.total = np.zeros((count, latents))
        """Sum of the values."""
        self.top = TopPatches.none(count, latents)
        zeros = np.zeros((3, count))
        self.rebuilt = Rebuilt(zeros[0], zeros[1], np.zeros((count, dim)), zeros[2])
        """Zeros where nothing was rebuilt."""

    def add(self, batch: Batch, coded: Coded) -> None:
        """Count what a code says of a batch."""
        source, entries, sums = coded
        shares = batch.shares[self.sources[source][1]]
        images, patches = shares.shape
        cells, weights = self.bins.cells(entries), shares.flatten()[entries.token]
        starts = torch.searchsorted(entries.token, torch.arange(images + 1) * patches).tolist()
        shape = (len(self.bins.low), self.bins.count)
        length = shape[0] * shape[1]
        defects = shares.double().sum(dim=1).tolist()
        for row, (category, group) in enumerate(zip(batch.category, batch.group, strict=True)):
            part = slice(starts[row], starts[row + 1])
            found = torch.bincount(cells[part], minlength=length).view(shape)
            self.images[category] += 1
            self.all_patches[category] += patches
            self.fired[category] += found.sum(dim=1).numpy()
            values = entries.value[part].double()
            self.total[category] += torch.bincount(
                entries.latent[part], values, minlength=shape[0]
            ).numpy()
            if not batch.known[row]:
                continue
            self.counts[category, group, 0] += found.numpy()
            self.patches[category, group] += (patches, defects[row])
            if defects[row]:
                inside = weights[part] > 0
                hits = (cells[part][inside], weights[part][inside].double())
                self.counts[category, group, 1] += (
                    torch.bincount(*hits, minlength=length).view(shape).numpy()
                )
        self.top.add(source, batch.images, batch.category, patches, entries)
        for total, of_images in zip(self.rebuilt, sums, strict=False):
            np.add.at(total, batch.category, of_images.numpy())

    def rows(self, category: str | None) -> slice:
        """The categories that a name stands for; None: all."""
        if category is None:
            return slice(None)
        number = self.categories.index(category)
        return slice(number, number + 1)

    def average_precision(self, category: str | None = None) -> np.ndarray:
        """Precision (C,) of every latent's value as a detector of defective patches by itself.

        Of all patches together, or those of a category. NaN without an anomalous patch.
        """
        counts, patches = self._of_groups(category)
        return binned_precision(counts.sum(axis=0), patches.sum(axis=0))

    def interval(
        self, category: str | None = None, latents: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the middle 95 % of `average_precision` lie when the groups are drawn anew.

        Of up to GROUPS images in a category a group is an image.

        `latents` (n,): only these.
        """
        counts, patches = self._of_groups(category)
        part = counts if latents is None else counts[:, :, latents]
        return resampled_precision(part, patches)

    def base_rate(self, category: str | None = None) -> float:
        """Share of anomalous patches: the precision of a latent that knows nothing; NaN of none."""
        total, anomalous = self.patches[self.rows(category)].sum(axis=(0, 1))
        return float(anomalous / total) if total else float("nan")

    def rates(self, category: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of patches where each latent has a value: of all, normal and anomalous ones.

        Returns
        -------
        three of (C,) float64; NaN where there is no such patch
        """
        rows = self.rows(category)
        every, anomalous = self.counts[rows].sum(axis=(0, 1), dtype=np.float64).sum(axis=-1)
        known, defects = self.patches[rows].sum(axis=(0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (
                self.fired[rows].sum(axis=0) / self.all_patches[rows].sum(),
                (every - anomalous) / (known - defects),
                anomalous / defects,
            )

    def best(self, category: str | None = None) -> TopPatches:
        """The top patches of a category, or of all together: (C, TOP)."""
        return self.top.of(self.rows(category))

    def _of_groups(self, category: str | None) -> tuple[np.ndarray, np.ndarray]:
        """(GROUPS, 2, C, bins) and (GROUPS, 2)."""
        rows = self.rows(category)
        return self.counts[rows].sum(axis=0), self.patches[rows].sum(axis=0)


def rebuilt_sums(x: Tensor, x_hat: Tensor) -> tuple[Tensor, ...]:
    """The sums of `Rebuilt`, image by image, of tokens (B, N, D) and what is rebuilt of them."""
    cosine = F.cosine_similarity(x, x_hat, dim=2).sum(dim=1, dtype=torch.float64)
    error = (x - x_hat).square_().sum(dim=(1, 2), dtype=torch.float64)
    squares = x.square().sum(dim=(1, 2), dtype=torch.float64)
    return error.cpu(), squares.cpu(), x.sum(dim=1, dtype=torch.float64).cpu(), cosine.cpu()
