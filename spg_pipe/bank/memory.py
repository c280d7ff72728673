"""A memory bank: patches of normal images of one product, and how far such images lie apart.

Shapes: n normal images, B judged ones, N patches an image, D token width, m patches kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.bank.coreset import farthest_first
from spg_pipe.bank.search import Search, search_among
from spg_pipe.decision.model import Scale, coarse_maps, top_mean
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import to_grid, unit
from spg_pipe.params import BankParams
from spg_pipe.store.reader import FeatureStore

CANDIDATES = 100_000
"""Patches that a coreset is chosen from: of more, each image gives the same number, by chance."""
APART = 16
"""Normal images, evenly spread, that say how far such images lie from each other."""
SAME = 1e-3
"""An image whose mean token is nearer than this, relative to its length, is the same image. Other
photographs of one product lie ten times as far away and more, rounding to float16 far less."""
_SMALLEST = 1e-6
"""Deviation of distances below which normal images are copies of each other."""

TokensOf = Callable[[str, np.ndarray], Tensor]
"""Layer and image numbers (k,) → their patch tokens (k, N, D) float32."""


class Distances(NamedTuple):
    """What a bank says of a batch of images."""

    patches: dict[str, Tensor]
    """Layer → (B, h, w) float32: distances in deviations of normal images from each other."""
    top: np.ndarray
    """(B,) float64: mean of the highest of their blurred map, less that of normal images."""
    known: np.ndarray
    """(B,) bool: the image is one of the bank's own, and so at no distance."""


@dataclass(frozen=True)
class MemoryBank:
    """Unit patch tokens of normal images of one product."""

    search: dict[str, Search]
    """Layer → search among the tokens that were kept."""
    scales: dict[str, Scale]
    """Layer → mean and deviation of distances between patches of different normal images."""
    apart: dict[str, Tensor]
    """Layer → (k, h, w): distances of k of the normal images to the others, standardised."""
    map_top: float
    """Mean of the highest of their maps, from which `Distances.top` is measured."""
    grids: dict[str, tuple[int, int]]
    size: int
    """S: side of the maps, pixels."""
    sigma: float
    """Blur of the maps, pixels at S×S."""
    params: BankParams
    means: Tensor
    """(n, D) mean patch tokens of the first layer, by which an image is known again."""

    @property
    def images(self) -> int:
        """n"""
        return len(self.means)

    @classmethod
    def of(
        cls,
        tokens_of: TokensOf,
        images: int,
        grids: dict[str, tuple[int, int]],
        size: int,
        sigma: float,
        params: BankParams,
        *,
        device: str = "cpu",
    ) -> "MemoryBank":
        """From the tokens of normal images.

        Parameters
        ----------
        tokens_of : callable
            Called with a few images at a time.
        images : int
            n, at least 2.
        grids : dict of layer → (h, w)
        size, sigma
            Of the maps.
        device : str
            Where the search runs.

        Raises
        ------
        SpgError
            If there are fewer than two different images, or fewer patches than neighbours.
        """
        if images < 2:
            raise SpgError(
                f"There is {images} normal image; a bank needs at least two, to know how far such "
                "images lie from each other. Give some more."
            )
        search, scales, apart = {}, {}, {}
        for layer, grid in grids.items():
            kept, owners = _kept(tokens_of, layer, images, params.coreset)
            search[layer] = search_among(kept, device)
            found = _apart(tokens_of, layer, kept, owners, images, params.neighbours)
            scales[layer] = Scale(float(found.mean()), float(found.std()))
            if scales[layer].deviation < _SMALLEST:
                raise SpgError(
                    f"The {images} normal images are copies of each other, so they do not tell how "
                    "far such images lie apart. Give different ones."
                )
            apart[layer] = to_grid((found - scales[layer].mean) / scales[layer].deviation, grid)
        top = top_mean(coarse_maps(apart, size, sigma), params.top_share)
        means = _means(tokens_of, next(iter(grids)), images)
        return cls(search, scales, apart, float(top.mean()), grids, size, sigma, params, means)

    def with_top_share(self, share: float) -> "MemoryBank":
        """The same distances, and another share of their map that judges the image."""
        top = top_mean(coarse_maps(self.apart, self.size, self.sigma), share)
        params = self.params.model_copy(update={"top_share": share})
        return replace(self, params=params, map_top=float(top.mean()))

    @classmethod
    def of_store(
        cls,
        store: FeatureStore,
        rows: np.ndarray,
        sigma: float,
        params: BankParams,
        *,
        device: str = "cpu",
    ) -> "MemoryBank":
        """From some images (n,) of a store; see `of`."""

        def tokens_of(layer: str, images: np.ndarray) -> Tensor:
            return torch.from_numpy(store.tokens(layer, rows[images])).float()

        grids = {layer: store.spec.layers[layer].grid for layer in store.layers}
        return cls.of(tokens_of, len(rows), grids, store.image_size, sigma, params, device=device)

    def standard(self, layer: str, tokens: Tensor) -> Tensor:
        """Distances (B, N) of patches to the bank, of tokens (B, 1 + N, D), standardised."""
        patches = unit(tokens[:, 1:])
        products = self.search[layer](patches.flatten(0, 1), self.params.neighbours)
        scale = self.scales[layer]
        return ((1 - products.mean(dim=1) - scale.mean) / scale.deviation).view(patches.shape[:2])

    def distances(self, tokens: dict[str, Tensor]) -> Distances:
        """Of images, layer → (B, 1 + N, D) float32."""
        patches = {
            layer: to_grid(self.standard(layer, tokens[layer]), grid)
            for layer, grid in self.grids.items()
        }
        return Distances(patches, self.tops(patches), self._known(tokens))

    def tops(self, patches: dict[str, Tensor]) -> np.ndarray:
        """`Distances.top` of standardised distances."""
        maps = coarse_maps(patches, self.size, self.sigma)
        return top_mean(maps, self.params.top_share) - self.map_top

    def _known(self, tokens: dict[str, Tensor]) -> np.ndarray:
        mean = tokens[next(iter(self.grids))][:, 1:].mean(dim=1).cpu()
        exact = "donot_use_mm_for_euclid_dist"
        away = torch.cdist(mean, self.means, compute_mode=exact).amin(dim=1)
        return (away < SAME * mean.norm(dim=1)).numpy()


def _kept(tokens_of: TokensOf, layer: str, images: int, keep: int) -> tuple[Tensor, Tensor]:
    """Unit tokens (m, D) of the bank, and the number of each one's image (m,)."""
    generator = torch.Generator().manual_seed(0)
    found, owners = [], []
    for image in range(images):
        tokens = unit(tokens_of(layer, np.array([image]))[0])
        if (share := max(1, CANDIDATES // images)) < len(tokens):
            tokens = tokens[torch.randperm(len(tokens), generator=generator)[:share]]
        found.append(tokens)
        owners.append(torch.full((len(tokens),), image))
    kept, owner = torch.cat(found), torch.cat(owners)
    if len(kept) > keep:
        chosen = farthest_first(kept, keep)
        kept, owner = kept[chosen], owner[chosen]
    return kept, owner


def _apart(
    tokens_of: TokensOf, layer: str, kept: Tensor, owners: Tensor, images: int, neighbours: int
) -> Tensor:
    """Distances (k, N) of some images' patches to the bank without the image itself."""
    chosen = np.unique(np.linspace(0, images - 1, min(images, APART)).round().astype(int))
    found = []
    for image in chosen.tolist():
        others = kept[owners != image]
        if len(others) < neighbours:
            raise SpgError(
                f"A bank of {len(kept)} patches has {len(others)} that are not of one and the same "
                f"image, and bank.neighbours is {neighbours}. Lower bank.neighbours, raise "
                "bank.coreset, or give more normal images."
            )
        products = unit(tokens_of(layer, np.array([image]))[0]) @ others.t()
        found.append(1 - products.topk(neighbours, dim=1).values.mean(dim=1))
    return torch.stack(found)


def _means(tokens_of: TokensOf, layer: str, images: int) -> Tensor:
    return torch.cat([tokens_of(layer, np.array([i])).mean(dim=1) for i in range(images)])
