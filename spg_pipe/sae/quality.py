"""What a trained SAE is worth, measured over the whole split in one pass."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.sae import ops
from spg_pipe.sae.model import InputTransform, SparseAutoencoder
from spg_pipe.sae.run import SaeRun
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
    tokens: int
    """Patch tokens that were looked at."""
    r2_prefixes: dict[str, float] = field(default_factory=dict)
    """Matryoshka prefix p → R² of the first p latents alone; empty without prefixes."""

    def summary(self) -> dict[str, Any]:
        """Plain values for quality.json."""
        found = self.frequency.numpy()
        rare = float(((found > 0) & (found < ALMOST_DEAD)).mean())
        return {
            "r2": self.r2,
            "fvu": self.fvu,
            "l0": self.l0,
            "dead_share": float(self.dead.float().mean()),
            # Of fewer tokens a single one is no rare event.
            "almost_dead_share": rare if self.tokens * ALMOST_DEAD > 1 else None,
            "dense_share": float((found > DENSE).mean()),
            "frequencies": frequency_histogram(found),
        } | ({"r2_prefixes": self.r2_prefixes} if self.r2_prefixes else {})


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


def measure(
    sae: SparseAutoencoder, source: TokenSource, transform: InputTransform, count_cls: bool
) -> Quality:
    """Dead mask, frequencies, R², FVU and L0 of an SAE: `measure_all` of a single one."""
    return measure_all([(sae, transform, ())], source, count_cls)[0]


def measure_all(
    saes: Sequence[tuple[SparseAutoencoder, InputTransform, tuple[int, ...]]],
    source: TokenSource,
    count_cls: bool,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Quality]:
    """Quality of SAEs over a store's layer, in one pass.

    Parameters
    ----------
    saes : sequence of (SparseAutoencoder, InputTransform, prefixes)
        With the transform and the Matryoshka prefixes of their training.
    source : TokenSource
        The layer, on the SAEs' device.
    count_cls : bool
        The dead mask also counts CLS tokens (protocol spg); the other figures never do.
    progress : callable
        Told of patch tokens done and in all.
    """
    meters = [_Meter(*one) for one in saes]
    store, done = source.store, 0
    total = len(store) * store.spec.layers[source.layer].patches
    for _, batch in ordered_batches({source.layer: source}, _IMAGES):
        tokens = batch[source.layer]
        patches, cls = tokens[:, 1:].flatten(0, 1), tokens[:, 0] if count_cls else None
        for meter in meters:
            meter.add(patches, cls)
        done += len(patches)
        progress(done, total)
    return [meter.quality() for meter in meters]


class _Meter:
    """Sums over tokens of one SAE."""

    def __init__(
        self, sae: SparseAutoencoder, transform: InputTransform, prefixes: tuple[int, ...]
    ) -> None:
        self.sae, self.transform = sae, transform
        self.prefix_errors = dict.fromkeys(prefixes, 0.0)
        latents, dim = sae.dictionary.shape
        self.counts = torch.zeros(latents, dtype=torch.int64, device=sae.dictionary.device)
        self.cls_counts = torch.zeros_like(self.counts)
        self.total = torch.zeros(dim, dtype=torch.float64, device=sae.dictionary.device)
        self.error = self.squares = 0.0
        self.tokens = 0

    @torch.no_grad()
    def add(self, patches: Tensor, cls: Tensor | None) -> None:
        """Patch tokens (n, D), and CLS tokens (B, D) where they count, as stored."""
        x = self.transform(patches)
        output = self.sae(x)
        self.counts += output.active
        self.error += float((x - output.x_hat).double().pow(2).sum())
        self.tokens += len(x)
        self.total += x.double().sum(dim=0)
        self.squares += float(x.double().pow(2).sum())
        self._add_prefixes(x)
        if cls is not None:
            self.cls_counts += self.sae(self.transform(cls)).active

    def _add_prefixes(self, x: Tensor) -> None:
        if not self.prefix_errors:
            return
        atoms = self.sae.atoms
        for block in ops.blocks(len(x), len(atoms), x.device):
            z = self.sae.code(x[block] @ self.sae.encoder.t())
            for p in self.prefix_errors:
                error = z[:, :p] @ atoms[:p] - x[block]
                self.prefix_errors[p] += float(error.double().pow(2).sum())

    def quality(self) -> Quality:
        variance = self.squares - float(self.total.pow(2).sum()) / self.tokens
        variance = max(variance, 1e-12)
        fvu = self.error / variance
        prefixes = {str(p): 1.0 - error / variance for p, error in self.prefix_errors.items()}
        frequency = self.counts.double() / self.tokens
        dead = (self.counts + self.cls_counts) == 0
        l0 = float(frequency.sum())
        return Quality(dead.cpu(), frequency.cpu(), 1.0 - fvu, fvu, l0, self.tokens, prefixes)


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


def seeds_stability(saes: Sequence[SaeRun]) -> dict[str, float]:
    """Layer → `stability` without dead latents, mean over pairs of seeds; empty for one seed."""
    if len(saes) < 2:
        return {}
    return {
        layer: statistics.fmean(
            stability(*(sae.layers[layer].atoms[~sae.dead[layer]] for sae in pair))
            for pair in itertools.combinations(saes, 2)
        )
        for layer in saes[0].layers
    }
