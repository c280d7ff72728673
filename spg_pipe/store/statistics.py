"""Mean, deviation and checksums of the tokens, gathered shard by shard while they are written."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from spg_pipe.store.shards import crc32c

_PIECE = 8192
"""Tokens that are summed at once: float64 copies of these stay in a CPU's cache or near it."""


@dataclass(frozen=True)
class ShardStatistics:
    """Of the patch tokens of one layer in one shard."""

    total: np.ndarray
    """(D,) float64, sum of the tokens."""
    squares: np.ndarray
    """(D,) float64, sum of their squares."""
    checksums: list[int]
    """crc32c of every image's token bytes."""

    @classmethod
    def of(cls, tokens: np.ndarray) -> Self:
        """Of stored tokens (n, N, D) in the store's dtype."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        total, squares = np.zeros((2, flat.shape[1]))
        for start in range(0, len(flat), _PIECE):
            piece = flat[start : start + _PIECE].astype(np.float64)
            total += piece.sum(axis=0)
            squares += np.einsum("nd,nd->d", piece, piece)
        return cls(total, squares, [crc32c(image) for image in tokens])


class LayerStatistics:
    """Of all patch tokens of one layer. Shards are added in order, so that the bits are one's own
    whoever computed them and however often."""

    def __init__(self, dim: int) -> None:
        self._total, self._squares = np.zeros((2, dim))
        self.checksums: list[int] = []

    def add(self, shard: ShardStatistics) -> None:
        """Add the next shard."""
        self._total += shard.total
        self._squares += shard.squares
        self.checksums += shard.checksums

    def mean_std(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (D,) float64 over all `tokens` patch tokens."""
        mean, squares = self._total / tokens, self._squares / tokens
        return mean, np.sqrt(np.maximum(squares - mean**2, 0.0))
