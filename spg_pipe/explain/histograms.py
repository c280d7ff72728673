"""Average precision of values that are counted in bins, with intervals: no value is kept.

A patch is anomalous by the share of its pixels that are defect, and normal by the rest.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.explain.codes import Active
from spg_pipe.explain.groups import ENDS, drawn

BINS = 64
"""Of a code."""
EVEN_BINS = 512
"""Of values of any sign: many, as the precision depends on the few highest values."""
_PER_OCTAVE = 16
"""Borders of a code's bins grow by 4 %: they span a factor of 16, of which 2 is headroom. What is
below an eighth of the largest value that was seen counts as equal; a TopK code's values span 2 to
7. Binning moves an average precision by 0.001 on average, that of projections as much."""
_HEADROOM = 1.0
"""Octaves beyond the largest value of a code that was seen."""
_ROOM = 0.25
"""Beyond both ends of other values, of the range that was seen."""
DRAWS = 200
_CELLS = 2**20
"""Resampled counts at once."""


@dataclass(frozen=True)
class Bins:
    """Where the values of C latents are counted; what lies outside counts in the outermost bin."""

    low: Tensor
    """(C,) lower end, of codes its logarithm to base 2."""
    steps: Tensor
    """(C,) bins a unit."""
    logarithmic: bool

    @property
    def count(self) -> int:
        """How many there are."""
        return BINS if self.logarithmic else EVEN_BINS

    @classmethod
    def of(cls, smallest: Tensor, largest: Tensor, *, logarithmic: bool) -> "Bins":
        """Bins for what was seen in a sample, (C,) each; NaN of a latent without a value there."""
        if logarithmic:
            top = largest.log2()
            top = torch.where(top.isnan(), top.nanmedian().nan_to_num(), top) + _HEADROOM
            steps = torch.full_like(top, _PER_OCTAVE)
            return cls(top - BINS / _PER_OCTAVE, steps, True)
        room = _ROOM * (largest - smallest).clamp_min(1e-6)
        return cls(smallest - room, EVEN_BINS / (largest - smallest + 2 * room), False)

    def cells(self, entries: Active) -> Tensor:
        """(m,) int64: latent · count + bin of each entry."""
        values = entries.value.log2() if self.logarithmic else entries.value
        place = (values - self.low[entries.latent]).mul_(self.steps[entries.latent])
        return place.clamp_(0, self.count - 1).long().add_(entries.latent, alpha=self.count)


def binned_precision(counts: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Step-wise average precision; the values of one bin count as equal, and so do zeros.

    Parameters
    ----------
    counts : (..., 2, C, bins)
        Patches with a value, by bin: of any kind, and the anomalous ones.
    patches : (..., 2)
        All patches, with a value or without (0, below every bin).

    Returns
    -------
    (..., C) float64; NaN where no patch is anomalous
    """
    descending = np.cumsum(counts[..., ::-1], axis=-1, dtype=np.float64)
    of_all, hits = descending[..., 0, :, :], descending[..., 1, :, :]
    gained = np.diff(hits, axis=-1, prepend=0.0)
    total = patches[..., 0].astype(np.float64)[..., None]
    positive = patches[..., 1].astype(np.float64)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(of_all > 0, gained * hits / of_all, 0.0).sum(axis=-1)
        rest = (positive - hits[..., -1]).clip(min=0)  # sums of float32 shares
        return (steps + rest * positive / total) / positive


def resampled_precision(counts: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the middle 95 % of `binned_precision` lie when groups are drawn anew.

    Parameters
    ----------
    counts : (G, 2, C, bins)
        Of G groups of images, drawn with replacement.
    patches : (G, 2)

    Returns
    -------
    low, high : (C,) float64 each; NaN where no draw has an anomalous patch
    """
    there = np.flatnonzero(patches[:, 0] > 0)
    latents = counts.shape[2]
    low, high = np.full(latents, np.nan), np.full(latents, np.nan)
    if not len(there) or not patches[:, 1].sum():
        return low, high
    weights = drawn(len(there), DRAWS).astype(np.float32)
    drawn_patches = weights @ patches[there].astype(np.float64)
    size = max(1, _CELLS // (DRAWS * 2 * counts.shape[3]))
    for start in range(0, latents, size):
        part = counts[there, :, start : start + size]
        resampled = (weights @ part.reshape(len(there), -1)).reshape(DRAWS, *part.shape[1:])
        found = binned_precision(resampled, drawn_patches)
        known = found[drawn_patches[:, 1] > 0]
        low[start : start + size], high[start : start + size] = np.quantile(known, ENDS, axis=0)
    return low, high
