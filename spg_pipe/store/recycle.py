"""Memory that is used again once nobody holds it."""

import math
import sys

import numpy as np
import torch
from torch import Tensor

_KEPT = 3
"""Pieces: one that the consumer holds, one that it is given, one for the change-over."""


def _references(arrays: list[np.ndarray], place: int) -> int:
    return sys.getrefcount(arrays[place])


_IDLE = _references([np.empty(0)], 0)
"""Of an array that only its list holds: counted here, because interpreters count differently."""


class Recycler:
    """Tensors on the CPU whose memory is used again after their last holder let go.

    Fresh memory costs a page fault for every 4 KiB, about as much as filling it. A consumer that
    drops each batch gets the same two or three pieces in turn; one that keeps them gets others.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content."""
        size = math.prod(shape)
        array = self._idle(size * dtype.itemsize)
        return torch.from_numpy(array)[: size * dtype.itemsize].view(dtype).view(shape)

    def _idle(self, size: int) -> np.ndarray:
        for place in range(len(self._arrays)):
            # A tensor made of an array, and every view of it, holds the array.
            if _references(self._arrays, place) == _IDLE and self._arrays[place].size >= size:
                return self._arrays[place]
        fresh = np.empty(size, np.uint8)
        if len(self._arrays) < _KEPT:
            self._arrays.append(fresh)
        return fresh
