"""What a trained SAE is worth, measured over the whole split in one pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spg_pipe.params import SaeParams
from spg_pipe.sae.model import SparseAutoencoder, input_tokens
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import ordered_batches


@dataclass(frozen=True)
class Quality:
    """Counts and errors over all patch tokens of a split."""

    dead: Tensor
    """(C,) bool: no token had z > 0."""
    r2: float
    """1 − FVU."""
    fvu: float
    """Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖²."""
    l0: float
    """Mean number of latents with z > 0 a token."""

    def summary(self) -> dict[str, float]:
        """Plain numbers for quality.json."""
        share = float(self.dead.float().mean())
        return {"r2": self.r2, "fvu": self.fvu, "l0": self.l0, "dead_share": share}


@torch.no_grad()
def measure(
    sae: SparseAutoencoder, source: TokenSource, params: SaeParams, count_cls: bool
) -> Quality:
    """Dead mask, R², FVU and L0 of an SAE over a store's layer.

    Parameters
    ----------
    source : TokenSource
        The layer, on the SAE's device.
    count_cls : bool
        The dead mask also counts CLS tokens (protocol spg); the other figures never do.
    """
    counts = torch.zeros(sae.dictionary.shape[0], dtype=torch.int64, device=source.device)
    error = active = tokens = 0.0
    total = torch.zeros(sae.dictionary.shape[1], dtype=torch.float64, device=source.device)
    squares = 0.0
    for _, batch in ordered_batches({source.layer: source}, params.batch_images or 16):
        both = batch[source.layer]
        x = input_tokens(both[:, 1:].flatten(0, 1), params.input_norm)
        output = sae(x)
        counts += active_counts(output.values, output.indices, len(counts))
        error += float((x - output.x_hat).double().pow(2).sum())
        active += float((output.values > 0).sum())
        tokens += len(x)
        total += x.double().sum(dim=0)
        squares += float(x.double().pow(2).sum())
        if count_cls:
            values, indices, _ = sae.encode(input_tokens(both[:, 0], params.input_norm))
            counts += active_counts(values, indices, len(counts))
    variance = squares - float(total.pow(2).sum()) / tokens
    fvu = error / max(variance, 1e-12)
    return Quality((counts == 0).cpu(), 1.0 - fvu, fvu, active / tokens)


def active_counts(values: Tensor, indices: Tensor, latents: int) -> Tensor:
    """How many tokens have z > 0, for each latent: (C,) int64 from codes (n, k)."""
    return torch.bincount(indices[values > 0], minlength=latents)
