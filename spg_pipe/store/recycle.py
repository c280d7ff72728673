"""Memory that is used again once nobody holds it."""

import math
import sys

import numpy as np
import torch
from torch import Tensor

_KEPT = 3
_IDLE = 3
"""References to an array that only the pool holds: its list, a loop's variable, an argument."""


class Recycler:
    """Tensors on the CPU whose memory is used again after their last holder let go.

    Fresh memory costs a page fault for every 4 KiB, about as much as filling it. A consumer that
    drops each batch gets the same two or three pieces in turn; one that keeps them gets others.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, of at most the memory of the pool's first."""
        size = math.prod(shape)
        array = self._idle(size * dtype.itemsize)
        return torch.from_numpy(array)[: size * dtype.itemsize].view(dtype).view(shape)

    def _idle(self, size: int) -> np.ndarray:
        for array in self._arrays:
            # A tensor made of an array, and every view of it, holds the array.
            if array.size >= size and sys.getrefcount(array) == _IDLE:
                return array
        fresh = np.empty(size, np.uint8)
        if len(self._arrays) < _KEPT:
            self._arrays.append(fresh)
        return fresh
