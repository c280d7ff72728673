"""What a trained SAE is worth, measured over the whole split in one pass."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.sae import sparse
from spg_pipe.sae.model import SparseAutoencoder, sae_input
from spg_pipe.sae.run import Histogram, LayerQuality, SaeRun
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
    """Counts and errors over all patch tokens of a split; `LayerQuality` says what they mean."""

    dead: Tensor
    """(C,) bool."""
    frequency: Tensor
    """(C,) float64: share of the patch tokens with z > 0."""
    fvu: float
    tokens: int
    """Patch tokens that were looked at."""
    r2_prefixes: dict[str, float]

    @property
    def r2(self) -> float:
        """1 − FVU."""
        return 1.0 - self.fvu

    def record(self, *, tokens_seen: int, steps: int, epochs: float) -> LayerQuality:
        """These figures and those of the training, for quality.json."""
        frequency = self.frequency.numpy()
        rare = float(((frequency > 0) & (frequency < ALMOST_DEAD)).mean())
        edges = np.logspace(-_DECADES, 0, 4 * _DECADES + 1)
        latents, _ = np.histogram(np.clip(frequency[frequency > 0], edges[0], 1.0), edges)
        return LayerQuality(
            r2=self.r2,
            fvu=self.fvu,
            l0=float(frequency.sum()),
            dead_share=float(self.dead.float().mean()),
            # Of fewer tokens a single one is no rare event.
            almost_dead_share=rare if self.tokens * ALMOST_DEAD > 1 else None,
            dense_share=float((frequency > DENSE).mean()),
            frequencies=Histogram(edges=tuple(edges.tolist()), latents=tuple(latents.tolist())),
            r2_prefixes=self.r2_prefixes,
            tokens_seen=tokens_seen,
            steps=steps,
            epochs=epochs,
        )


@torch.no_grad()
def measure(
    sae: SparseAutoencoder,
    source: TokenSource,
    *,
    norm: str,
    count_cls: bool,
    prefixes: tuple[int, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Quality of an SAE over a store's layer, in one pass.

    Parameters
    ----------
    source : TokenSource
        The layer, on the SAE's device.
    norm, prefixes
        `sae.input_norm` and the Matryoshka prefixes of its training.
    count_cls : bool
        The dead mask also counts CLS tokens (protocol spg); the other figures never do.
    progress : callable
        Told of patch tokens done and in all.
    """
    atoms = sae.atoms
    latents, dim = atoms.shape
    counts = torch.zeros(latents, dtype=torch.int64, device=sae.dictionary.device)
    cls_counts = torch.zeros_like(counts)
    total = torch.zeros(dim, dtype=torch.float64, device=sae.dictionary.device)
    error = squares = 0.0
    prefix_errors = dict.fromkeys(prefixes, 0.0)
    tokens, tokens_in_all = 0, len(source.store) * source.patches
    for _, batch in ordered_batches({source.layer: source}, _IMAGES):
        x = sae_input(batch[source.layer][:, 1:].flatten(0, 1), norm)
        output = sae(x)
        counts += output.active
        error += _squares(x - output.x_hat)
        squares += _squares(x)
        total += x.double().sum(dim=0)
        for block in sparse.blocks(len(x), latents, x.device) if prefixes else ():
            z = sae.code(x[block] @ sae.encoder.t())
            for p in prefixes:
                prefix_errors[p] += _squares(z[:, :p] @ atoms[:p] - x[block])
        if count_cls:
            cls_counts += sae(sae_input(batch[source.layer][:, 0], norm)).active
        tokens += len(x)
        progress(tokens, tokens_in_all)
    variance = max(squares - float(total.pow(2).sum()) / tokens, 1e-12)
    return Quality(
        dead=((counts + cls_counts) == 0).cpu(),
        frequency=(counts.double() / tokens).cpu(),
        fvu=error / variance,
        tokens=tokens,
        r2_prefixes={str(p): 1.0 - error / variance for p, error in prefix_errors.items()},
    )


def _squares(x: Tensor) -> float:
    return float(x.double().pow(2).sum())


@torch.no_grad()
def stability(first: Tensor, second: Tensor) -> float:
    """How many atoms of one dictionary another one has as well (MMCS).

    Mean over both directions of each unit atom's (C, D) largest cosine with the other's: 1 for the
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
