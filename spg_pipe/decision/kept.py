"""Which pixels count: the rest of an image, its ignored part, gives nothing to map or score.

A pixel or a patch that is ignored in part counts by the share of it that is kept
(docs/regions-of-interest.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """How much of each pixel of B images counts."""

    shares: Tensor
    """(B, S, S) float32 in [0, 1] on the CPU."""

    @classmethod
    def of(cls, each: Sequence[np.ndarray | None]) -> "Kept | None":
        """Of images that have an (S, S) array, or None where all of it counts.

        None if that is so of all: what judges then does nothing but what it does without masks.
        """
        size = next((len(shares) for shares in each if shares is not None), 0)
        if not size:
            return None
        whole = np.ones((size, size), np.float32)
        rows = [whole if shares is None else shares for shares in each]
        return cls(torch.from_numpy(np.stack(rows).astype(np.float32)))

    def at(self, grid: tuple[int, int]) -> Tensor:
        """Shares (B, h, w) of the cells of a grid over the images: patches, or larger pixels."""
        return F.adaptive_avg_pool2d(self.shares[:, None], grid)[:, 0]

    def some(self, images: np.ndarray | slice) -> "Kept":
        """Of some of the images."""
        return Kept(self.shares[images])

    def tile(self, side: int, top: int, left: int, size: int) -> "Kept":
        """Of a tile of images that are resized to a side, all in pixels."""
        whole = self.shares if side == self.shares.shape[-1] else self.at((side, side))
        return Kept(whole[:, top : top + size, left : left + size])

    @property
    def nothing(self) -> np.ndarray:
        """(B,) bool: the whole image is ignored."""
        return ~self.shares.flatten(1).any(dim=1).numpy()


def patch_shares(kept: Kept | None, grid: tuple[int, int]) -> Tensor | None:
    """(B, h·w) how much each patch of a grid counts, in tokens' order; None: all alike."""
    return None if kept is None else kept.at(grid).flatten(1)


def whole(shares: Tensor) -> Tensor:
    """(B,) bool: which images have nothing ignored, of shares (B, …).

    Their numbers are those without a mask to the last bit, whatever image is beside them.
    """
    return (shares == 1).flatten(1).all(dim=1)
