"""A memory bank: patches of normal images of one product, and how far such images lie apart.

Shapes: n normal images, B judged ones, N patches an image, D token width, m patches kept.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.bank.normal_patches import (
    Grids,
    NormalPatches,
    TokensOf,
    are_among,
)
from spg_pipe.bank.search import Search, farthest_first, highest_products, search_among
from spg_pipe.decision.components import self_distance
from spg_pipe.decision.kept import Kept, patch_shares
from spg_pipe.decision.model import Scale, coarse_maps, coarse_shares, top_mean
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import to_grid, unit
from spg_pipe.recipe.params import BankParams

CORESET = 10_000
"""Patches of a layer and category that are kept, at most, spread out."""
APART = 16
"""Normal images, evenly spread, that say how far such images lie from each other; at most."""
_SMALLEST = 1e-6
"""Deviation of distances, at least: normal images may have the same patches."""


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

    kept: dict[str, Tensor]
    """Layer → (m, D) float32 on the CPU: the tokens."""
    search: dict[str, Search]
    """Layer → search among these."""
    scales: dict[str, Scale]
    """Layer → mean and deviation of distances between patches of different normal images."""
    tops: np.ndarray
    """(k,) float64: mean of the highest of the maps of those images that gave the scales."""
    apart: np.ndarray
    """(k,) int64: their numbers among the images that the bank was made of."""
    grids: dict[str, tuple[int, int]]
    size: int
    """S: side of the maps, pixels."""
    params: BankParams
    means: Tensor
    """(n, D) mean patch tokens of the first layer, by which an image is known again."""
    copies: int = 0
    """Normal images that were left out, as copies of others."""

    @property
    def map_top(self) -> float:
        """Mean of `tops`, from which `Distances.top` is measured."""
        return float(self.tops.mean())

    @property
    def images(self) -> int:
        """n: different images that were seen, those included that only gave the scale."""
        return len(self.means)

    @classmethod
    def of(
        cls,
        read: NormalPatches,
        tokens_of: TokensOf,
        size: int,
        params: BankParams,
        *,
        device: str = "cpu",
    ) -> "MemoryBank":
        """From normal images read by `tokens_of`, which is called again for some of very many.

        `size` is S, the side of the maps in pixels. An `SpgError` if there are fewer patches than
        neighbours, or one image and several neighbours.
        """
        grids, n, k = read.grids, len(read.images), params.neighbours
        held_out = has_coreset(read)
        apart = evenly(n, held_out=held_out)
        without = apart if held_out else None
        kept = {layer: bank_tokens(read, layer, without, k) for layer in grids}
        banks = {layer: tokens.to(device) for layer, tokens in kept.items()}
        search = {layer: search_among(tokens, device) for layer, tokens in banks.items()}
        rest = {layer: torch.empty(len(apart), h * w) for layer, (h, w) in grids.items()}
        for number, image in enumerate(apart.tolist()):
            for layer, patches in read.whole(tokens_of, image).items():
                if n == 1:
                    counts = patch_shares(read.kept(apart), grids[layer])
                    rest[layer] = self_distance(patches[None], grids[layer], counts)
                    continue
                if held_out:
                    products = search[layer](patches, k)
                else:
                    without_it = read.rows_of(layer, image)
                    products = highest_products(patches, banks[layer], k, without=without_it)
                rest[layer][number] = 1 - products.mean(dim=1)
        scales, tops = standing(rest, grids, size, params, read.kept(apart))
        chosen, copies = read.images[apart], read.given - n
        return cls(kept, search, scales, tops, chosen, grids, size, params, read.means, copies)

    def distances(self, tokens: dict[str, Tensor], kept: Kept | None = None) -> Distances:
        """Of images, layer → (B, 1 + N, D) float32, of which perhaps not all pixels count."""
        patches = {}
        for layer, (h, w) in self.grids.items():
            queries, scale = unit(tokens[layer][:, 1:]).flatten(0, 1), self.scales[layer]
            away = 1 - self.search[layer](queries, self.params.neighbours).mean(dim=1)
            patches[layer] = ((away - scale.mean) / scale.deviation).view(-1, h, w)
        mean = tokens[next(iter(self.grids))][:, 1:].mean(dim=1).cpu()
        top = _tops(patches, self.size, self.params, kept) - self.map_top
        return Distances(patches, top, are_among(mean, self.means))


def has_coreset(read: NormalPatches) -> bool:
    """Whether not all patches of some normal images are kept, so that some are held out."""
    return len(read.images) > 1 and any(len(each) > CORESET for each in read.patches.values())


def standing(
    apart: dict[str, Tensor], grids: Grids, size: int, params: BankParams, kept: Kept | None
) -> tuple[dict[str, Scale], np.ndarray]:
    """What distances of normal images from each other say of their scales and their maps.

    Parameters
    ----------
    apart : dict of layer → (k, N) float32
        Distances of the patches of k normal images from those of others.
    kept : Kept, optional
        Which of the images' pixels count.

    Returns
    -------
    scales : dict of layer → Scale
    tops : (k,) float64
        Mean of the highest of each image's map, in deviations.
    """
    scales = {
        layer: _scale(values, patch_shares(kept, grids[layer])) for layer, values in apart.items()
    }
    return scales, map_tops(apart, scales, grids, size, params, kept)


def _scale(values: Tensor, counts: Tensor | None) -> Scale:
    """Of values (k, N) that count by `counts` (k, N)."""
    if counts is None:
        return Scale(float(values.mean()), max(float(values.std()), _SMALLEST))
    total, counts = float(counts.sum()), counts.double()
    mean = float((counts * values).sum()) / max(total, _SMALLEST)
    square = float((counts * (values - mean).square()).sum()) / max(total - 1, _SMALLEST)
    return Scale(mean, max(square**0.5, _SMALLEST))


def map_tops(
    raw: dict[str, Tensor],
    scales: dict[str, Scale],
    grids: Grids,
    size: int,
    params: BankParams,
    kept: Kept | None,
) -> np.ndarray:
    """Mean (k,) float64 of the highest of the maps of layer → distances (k, N)."""
    standard = {
        layer: to_grid((raw[layer] - scale.mean) / scale.deviation, grids[layer])
        for layer, scale in scales.items()
    }
    return _tops(standard, size, params, kept).astype(np.float64)


def _tops(grids: dict[str, Tensor], size: int, params: BankParams, kept: Kept | None) -> np.ndarray:
    shares = None if kept is None else coarse_shares(kept, size)
    return top_mean(coarse_maps(grids, size, kept), params.top_share, shares)


def evenly(images: int, *, held_out: bool) -> np.ndarray:
    """Numbers of images, evenly spread, that say how far such images lie apart: (k,) int64.

    A coreset covers those that it was chosen from, and so would flatter them: it is chosen from
    the others, three quarters at least.
    """
    chosen = max(1, min(APART, images // 4)) if held_out else min(APART, images)
    if chosen == 1:
        return np.array([images // 2])
    return np.linspace(0, images - 1, chosen).round().astype(np.int64)


def bank_tokens(
    read: NormalPatches, layer: str, held_out: np.ndarray | None, neighbours: int
) -> Tensor:
    """Unit tokens (m, D) of a bank, without the images that are held out of it.

    An `SpgError` if there are fewer than neighbours, or one image and several neighbours.
    """
    if len(read.images) == 1 and neighbours > 1:
        raise SpgError(
            f"There is one normal image, whose patches give the scale by the nearest alone, and "
            f"bank.neighbours is {neighbours}. Lower bank.neighbours to 1, or give more images."
        )
    patches = read.patches[layer]
    if held_out is not None:
        inside = torch.ones(len(patches), dtype=torch.bool)
        for image in held_out.tolist():
            inside[read.rows_of(layer, image)] = False
        patches = patches[inside]
    if len(patches) > CORESET:
        patches = patches[farthest_first(patches, CORESET)]
    share = len(read.patches[layer]) // len(read.images)
    compared = len(patches) - (share if held_out is None and len(read.images) > 1 else 0)
    if compared < neighbours:
        raise SpgError(
            f"A normal image has {compared} patches of others to be compared with, and "
            f"bank.neighbours is {neighbours}. Lower bank.neighbours, or give more normal images."
        )
    return patches
