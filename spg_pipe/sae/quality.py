"""What a trained SAE is worth, measured over the whole split in one pass."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.sae.model import InputTransform, SparseAutoencoder
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import ordered_batches

ALMOST_DEAD = 1e-5
"""Active in less than this share of the tokens: too rare to mean much."""
DENSE = 0.1
"""Active in more than this share of the tokens: a latent that says little about where it is."""
_DECADES = 7
_IMAGES = 16


@dataclass(frozen=True)
class Quality:
    """Counts and errors over all patch tokens of a split."""

    dead: Tensor
    """(C,) bool: no token had z > 0."""
    frequency: Tensor
    """(C,) float64: share of the patch tokens with z > 0."""
    r2: float
    """1 − FVU."""
    fvu: float
    """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖²."""
    l0: float
    """Mean number of latents with z > 0 a token."""

    def summary(self) -> dict[str, Any]:
        """Plain values for quality.json."""
        found = self.frequency.numpy()
        return {
            "r2": self.r2,
            "fvu": self.fvu,
            "l0": self.l0,
            "dead_share": float(self.dead.float().mean()),
            "almost_dead_share": float(((found > 0) & (found < ALMOST_DEAD)).mean()),
            "dense_share": float((found > DENSE).mean()),
            "frequencies": frequency_histogram(found),
        }


def frequency_histogram(frequency: np.ndarray) -> dict[str, list[float]]:
    """Latents by how often they are active: four bins a decade from 1e-7 to 1.

    Parameters
    ----------
    frequency : (C,) shares of tokens. Latents that are never active are in no bin.

    Returns
    -------
    dict of `edges` (29 shares) and `latents` (28 counts)
    """
    edges = np.logspace(-_DECADES, 0, 4 * _DECADES + 1)
    active = np.clip(frequency[frequency > 0], edges[0], 1.0)
    counts, _ = np.histogram(active, edges)
    return {"edges": edges.tolist(), "latents": counts.tolist()}


@torch.no_grad()
def measure(
    sae: SparseAutoencoder, source: TokenSource, transform: InputTransform, count_cls: bool
) -> Quality:
    """Dead mask, frequencies, R², FVU and L0 of an SAE over a store's layer.

    Parameters
    ----------
    source : TokenSource
        The layer, on the SAE's device.
    transform : InputTransform
        As in training.
    count_cls : bool
        The dead mask also counts CLS tokens (protocol spg); the other figures never do.
    """
    latents, dim = sae.dictionary.shape
    counts = torch.zeros(latents, dtype=torch.int64, device=source.device)
    cls_counts = torch.zeros_like(counts)
    error = squares = 0.0
    tokens = 0
    total = torch.zeros(dim, dtype=torch.float64, device=source.device)
    for _, batch in ordered_batches({source.layer: source}, _IMAGES):
        both = batch[source.layer]
        x = transform(both[:, 1:].flatten(0, 1))
        output = sae(x)
        counts += output.active
        error += float((x - output.x_hat).double().pow(2).sum())
        tokens += len(x)
        total += x.double().sum(dim=0)
        squares += float(x.double().pow(2).sum())
        if count_cls:
            cls_counts += sae(transform(both[:, 0])).active
    variance = squares - float(total.pow(2).sum()) / tokens
    fvu = error / max(variance, 1e-12)
    frequency = counts.double() / tokens
    dead = (counts + cls_counts) == 0
    return Quality(dead.cpu(), frequency.cpu(), 1.0 - fvu, fvu, float(frequency.sum()))


@torch.no_grad()
def stability(first: Tensor, second: Tensor) -> float:
    """How many atoms of one dictionary another one has as well.

    Parameters
    ----------
    first, second : (C, D)
        Unit atoms of two seeds, dead latents left out.

    Returns
    -------
    float
        Mean over both directions of each atom's largest cosine with the other's (MMCS), 1 for the
        same dictionary in any order.
    """
    cosines = first @ second.t()
    return float((cosines.amax(dim=1).mean() + cosines.amax(dim=0).mean()) / 2)
