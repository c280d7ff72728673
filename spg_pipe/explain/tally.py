"""What is counted of a stream of patches, and the patches where a latent is largest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.explain.codes import Active
from spg_pipe.explain.groups import GROUPS
from spg_pipe.explain.histograms import Bins

TOP = 8
"""Patches kept of each latent and category, one an image."""
_NONE = torch.iinfo(torch.int64).min


class Batch(NamedTuple):
    """Which images a batch of B images holds."""

    images: np.ndarray
    """(B,) rows in the store."""
    category: np.ndarray
    """(B,) int"""
    group: np.ndarray
    """(B,) int"""
    known: np.ndarray
    """(B,) bool: whether the mask is known."""


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

    def of(self, categories: slice) -> "TopPatches":
        """Of some categories together: (C, TOP)."""
        merged = np.concatenate(self.value[categories], axis=1)
        order = np.argsort(-merged, axis=1, kind="stable")[:, :TOP]
        kept = (np.concatenate(part[categories], axis=1) for part in vars(self).values())
        return TopPatches(*(np.take_along_axis(part, order, axis=1) for part in kept))


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


class Tally:
    """Counts of C latents over K categories; its size does not depend on the number of images."""

    def __init__(self, categories: int, latents: int, dim: int, bins: Bins) -> None:
        self.latents, self.bins = latents, bins
        self.counts = np.zeros((categories, GROUPS, 2, latents, bins.count), np.float32)
        self.patches = np.zeros((categories, GROUPS, 2))
        self.images = np.zeros(categories, np.int64)
        self.all_patches = np.zeros(categories, np.int64)
        self.fired = np.zeros((categories, latents))
        self.total = np.zeros((categories, latents))
        zeros = np.zeros((3, categories))
        self.rebuilt = Rebuilt(zeros[0], zeros[1], np.zeros((categories, dim)), zeros[2])
        shape = (categories, latents, TOP)
        self._value = torch.full(shape, -torch.inf)
        self._place = torch.zeros((3, *shape), dtype=torch.int32)

    @property
    def top(self) -> TopPatches:
        """The largest so far, (K, C, TOP)."""
        return TopPatches(self._value.numpy(), *self._place.numpy())

    def add(self, source: int, batch: Batch, shares: Tensor, entries: Active) -> None:
        """Count the entries of a batch's B·N patch tokens.

        Parameters
        ----------
        source : int
            What the tokens are of: a number in `Activity.sources`.
        shares : (B, N) float32
            Share of each patch's pixels that are defect.
        entries : Active
            On the CPU.
        """
        images, patches = shares.shape
        cells, weights = self.bins.cells(entries), shares.flatten()[entries.token]
        starts = torch.searchsorted(entries.token, torch.arange(images + 1) * patches).tolist()
        shape = (self.latents, self.bins.count)
        length = shape[0] * shape[1]
        defects = shares.double().sum(dim=1).tolist()
        for row, (category, group) in enumerate(zip(batch.category, batch.group, strict=True)):
            part = slice(starts[row], starts[row + 1])
            found = torch.bincount(cells[part], minlength=length).view(shape)
            self.images[category] += 1
            self.all_patches[category] += patches
            self.fired[category] += found.sum(dim=1).numpy()
            values = entries.value[part].double()
            sums = torch.bincount(entries.latent[part], values, minlength=self.latents)
            self.total[category] += sums.numpy()
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
        self._keep_largest(source, batch, patches, entries)

    def add_rebuilt(self, category: np.ndarray, sums: Sequence[Tensor]) -> None:
        """Add the `rebuilt_sums` of images of some categories (B,); none of nothing."""
        for total, values in zip(self.rebuilt, sums, strict=False):
            np.add.at(total, category, values.numpy())

    def _keep_largest(self, source: int, batch: Batch, patches: int, entries: Active) -> None:
        """Each image's largest value of every latent competes with those kept of its category."""
        images = len(batch.images)
        # In one number: the value in order of size, then the patch, the first one largest.
        patch = patches - 1 - entries.token % patches
        keys = (_ordered(entries.value.view(torch.int32)).long() << 32) | patch
        places = (entries.token // patches) * self.latents + entries.latent
        largest = torch.full((images * self.latents,), _NONE)
        largest = largest.scatter_reduce_(0, places, keys, "amax").view(images, self.latents)
        value = _ordered((largest >> 32).int()).view(torch.float32)
        value = value.masked_fill_(largest == _NONE, -torch.inf)
        patch = patches - 1 - (largest & 0xFFFFFFFF).int()
        image = torch.from_numpy(batch.images.astype(np.int32))[:, None].expand_as(patch)
        place = torch.stack([torch.full_like(patch, source), image, patch])
        for category in np.unique(batch.category).tolist():
            rows = torch.from_numpy(np.flatnonzero(batch.category == category))
            both = torch.cat([self._value[category], value[rows].t()], dim=1)
            order = both.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
            self._value[category] = both.gather(1, order)
            places = torch.cat([self._place[:, category], place[:, rows].transpose(1, 2)], dim=2)
            self._place[:, category] = places.gather(2, order.expand(3, -1, -1))


def rebuilt_sums(x: Tensor, x_hat: Tensor) -> tuple[Tensor, ...]:
    """The sums of `Rebuilt`, image by image, of tokens (B, N, D) and what is rebuilt of them."""
    cosine = F.cosine_similarity(x, x_hat, dim=2).sum(dim=1, dtype=torch.float64)
    error = (x - x_hat).square_().sum(dim=(1, 2), dtype=torch.float64)
    squares = x.square().sum(dim=(1, 2), dtype=torch.float64)
    return error.cpu(), squares.cpu(), x.sum(dim=1, dtype=torch.float64).cpu(), cosine.cpu()


def _ordered(bits: Tensor) -> Tensor:
    """The bits of float32 as int32 of the same order, and back again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
