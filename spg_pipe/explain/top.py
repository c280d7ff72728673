"""The patches where a latent is largest, kept while images stream by."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.explain.codes import Active

TOP = 8
"""Patches kept of each latent and category, one an image."""
_NONE = torch.iinfo(torch.int64).min


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
        # In one number: the value in order of size, then the patch, the first one largest.
        patch = patches - 1 - entries.token % patches
        keys = (_ordered(entries.value.view(torch.int32)).long() << 32) | patch
        cells = (entries.token // patches) * latents + entries.latent
        largest = torch.full((len(images) * latents,), _NONE)
        largest = largest.scatter_reduce_(0, cells, keys, "amax").view(len(images), latents)
        value = _ordered((largest >> 32).int()).view(torch.float32)
        value = value.masked_fill_(largest == _NONE, -torch.inf)
        patch = patches - 1 - (largest & 0xFFFFFFFF).int()
        image = torch.from_numpy(images.astype(np.int32))[:, None].expand_as(patch)
        found = (value, torch.full_like(patch, source), image, patch)
        kept = [torch.from_numpy(part) for part in vars(self).values()]
        for number in np.unique(category).tolist():
            rows = torch.from_numpy(np.flatnonzero(category == number))
            both = [
                torch.cat([old[number], new[rows].t()], dim=1)
                for old, new in zip(kept, found, strict=True)
            ]
            order = both[0].sort(dim=1, descending=True, stable=True).indices[:, :TOP]
            for old, merged in zip(kept, both, strict=True):
                old[number] = merged.gather(1, order)


def _ordered(bits: Tensor) -> Tensor:
    """The bits of float32 as int32 of the same order, and back again."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
