"""Each normal image as the bank would judge it, had it not seen it (docs/own-goods.md).

Shapes: n different normal images, N patches an image, D token width, k neighbours.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.bank.memory import MemoryBank, bank_tokens, evenly, has_coreset, map_tops, standing
from spg_pipe.bank.normal_patches import NormalPatches, TokensOf
from spg_pipe.bank.search import highest_by_image, search_among
from spg_pipe.decision.components import self_distance
from spg_pipe.decision.kept import patch_shares

FOLDS = 4
"""Where a coreset is kept: choosing one without each image would take hours."""

Raw = Callable[[np.ndarray, int], dict[str, Tensor]]
"""Images (m,) and another one's number → layer → (m, N) float32: distances of the patches of these
images from a bank without themselves and without that one."""


class LeftOut(NamedTuple):
    """What a bank without an image says of it, and of the others."""

    top: float
    """Its image score by that bank alone."""
    others: np.ndarray
    """(m,) int64: numbers of those others that gave that bank its scale."""
    tops: np.ndarray
    """(m,) float64: `MemoryBank.tops` of that bank."""


def leave_one_out(
    bank: MemoryBank, read: NormalPatches, tokens_of: TokensOf, *, device: str = "cpu"
) -> list[LeftOut]:
    """Judge each normal image by a bank of the others, with the scale that these give.

    Exact where all patches are kept. With a coreset an image is judged by one of three quarters of
    the images, not its own; and the others, which give the scale, by such ones that may have seen
    it. `bank` is of all of them; `read` and `tokens_of` are as for `MemoryBank.of`.

    Returns
    -------
    list of n
        Empty where the images are too few: of one none is left, and those that are left may have
        fewer patches than a patch is to have neighbours.
    """
    n, neighbours, coreset = len(read.images), bank.params.neighbours, has_coreset(read)
    left = min(h * w for h, w in bank.grids.values()) * (n - (-(-n // FOLDS) if coreset else 2))
    if n == 1 or neighbours > max(left, 1):
        return []
    raw = (_folds if coreset else _pairs)(bank, read, tokens_of, device)
    left_out = []
    for image in range(n):
        rest = np.delete(np.arange(n), image)
        others = rest[evenly(len(rest), held_out=False)]
        of = (bank.grids, bank.size, bank.params)
        scales, tops = standing(raw(others, image), *of, read.kept(others))
        itself = np.array([image])
        top = map_tops(raw(itself, image), scales, *of, read.kept(itself))[0] - tops.mean()
        left_out.append(LeftOut(float(top), others, tops))
    return left_out


def _pairs(bank: MemoryBank, read: NormalPatches, tokens_of: TokensOf, device: str) -> Raw:
    """All patches are kept: from the nearest of each patch in each single image."""
    n, neighbours = len(read.images), bank.params.neighbours
    products, alone = dict[str, Tensor](), dict[str, Tensor]()
    for layer, grid in bank.grids.items():
        kept = bank.kept[layer].to(device)
        images = kept.view(n, -1, kept.shape[1])
        products[layer] = torch.stack([highest_by_image(one, images, neighbours) for one in images])
        for image in range(n):
            products[layer][image, :, image] = -torch.inf
        if n == 2:
            counts = patch_shares(read.kept(np.arange(n)), grid)
            alone[layer] = self_distance(images.cpu(), grid, counts)

    def raw(images: np.ndarray, without: int) -> dict[str, Tensor]:
        if n == 2 and images[0] != without:  # the other image is a bank's only one
            return {layer: each[images] for layer, each in alone.items()}
        found = {}
        for layer, each in products.items():
            left = each[images]
            left[:, :, without] = -torch.inf
            found[layer] = 1 - left.flatten(2).topk(neighbours, dim=2).values.mean(dim=2)
        return found

    return raw


def _folds(bank: MemoryBank, read: NormalPatches, tokens_of: TokensOf, device: str) -> Raw:
    """A coreset is kept: by one of the images of the other folds."""
    n, neighbours = len(read.images), bank.params.neighbours
    away = {layer: torch.empty(n, h * w) for layer, (h, w) in bank.grids.items()}
    for fold in range(min(FOLDS, n)):
        members = np.arange(fold, n, FOLDS)
        search = {
            layer: search_among(bank_tokens(read, layer, members, neighbours), device)
            for layer in bank.grids
        }
        for image in members.tolist():
            for layer, patches in read.whole(tokens_of, image).items():
                away[layer][image] = 1 - search[layer](patches, neighbours).mean(dim=1)
    return lambda images, without: {layer: each[images] for layer, each in away.items()}
