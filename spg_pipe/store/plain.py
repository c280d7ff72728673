"""The reference reader: tokens through zarr-python, whatever the codec and wherever they lie."""

from typing import Any

import numpy as np


class PlainTokens:
    """The tokens of one layer as Zarr gives them.

    The fallback for compressed and for remote stores, and what `RawTokens` is held to.
    """

    def __init__(self, array: Any) -> None:
        self._array = array

    def read(self, images: np.ndarray, out: np.ndarray) -> None:
        """Read patch tokens of some images (n,) into `out` (n, N, D), see `RawTokens.read`."""
        start = 0
        # Zarr reads a slice of neighbours at once; its fancy indexing is 10 times slower.
        for run in np.split(images, np.flatnonzero(np.diff(images) != 1) + 1):
            out[start : start + len(run)] = self._array[int(run[0]) : int(run[-1]) + 1]
            start += len(run)
