"""What training minimises: reconstruction, AuxK and a penalty (docs/method.md §2).

`losses` chooses the form: for a large TopK code the closed form on its active latents
(`sparse_loss`), for all else the dense one below, which is the method's text in PyTorch.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from spg_pipe.recipe.params import SaeParams
from spg_pipe.sae import activations, ops
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.ops import Codes
from spg_pipe.sae.sparse_loss import AuxK, topk_loss

ACTIVE_ABOVE = 1e-3
"""A latent counts as active in a step if any token has z above this (docs/method.md §2)."""
JUMP_PULL = 1000.0
"""With it `sae.sparsity`'s default makes a JumpReLU whose L0 is 0 or 2k pay as much as one that
reconstructs nothing. Reconstruction alone would settle at an L0 of its own."""


class SaeLosses(NamedTuple):
    """Means over the batch's tokens; `total` alone carries the gradient."""

    total: Tensor
    reconstruction: Tensor
    """mean over tokens and D of (x̂ − x)²; of Matryoshka prefixes the mean over them."""
    auxk: Tensor
    """mean over tokens and D of (e − ê)², before its coefficient."""


@dataclass
class DeadCounter:
    """Age of every latent since it was last active.

    `rule` "tokens": the age grows by the batch's tokens and is compared with `dead_after`.
    `rule` "steps" (protocol spg): it grows by 1 and is compared with
    max(1, ⌊dead_after / tokens in the batch⌋).
    """

    age: Tensor
    """(C,) int64."""
    rule: str
    dead_after: int
    _oldest: int = field(init=False)
    """No age is higher: while this is low, nobody has to look at the ages on a GPU."""

    def __post_init__(self) -> None:
        self.restore(self.age)

    def restore(self, age: Tensor) -> None:
        """Go on from these ages (C,) int64."""
        self.age = age
        self._oldest = int(age.max())

    def _growth_and_limit(self, tokens: int) -> tuple[int, int]:
        if self.rule == "steps":
            return 1, max(1, self.dead_after // tokens)
        return tokens, self.dead_after

    def candidates(self, tokens: int) -> Tensor | None:
        """Latents (m,) that are dead after a batch of so many tokens, unless active in it."""
        growth, limit = self._growth_and_limit(tokens)
        if self._oldest + growth <= limit:
            return None
        found = torch.nonzero(self.age + growth > limit)[:, 0]
        if not len(found):
            self._oldest = int(self.age.max())  # so that the next steps need not look
            return None
        return found

    def update(self, active: Tensor, tokens: int) -> Tensor:
        """Count one batch: `active` (C,) bool of its tokens. Who is dead now, (C,) bool."""
        growth, limit = self._growth_and_limit(tokens)
        self.age = torch.where(active, 0, self.age) + growth
        self._oldest += growth
        return self.age > limit


def losses(
    sae: SparseAutoencoder, x: Tensor, counter: DeadCounter, params: SaeParams
) -> tuple[SaeLosses, Tensor]:
    """Losses of tokens x (n, D) float32 and who is dead, (C,) bool; counts the batch's activity."""
    sparse = sae.activation == "topk" and not params.prefixes
    if sparse and not ops.is_small(len(x), len(sae.encoder)):
        return _sparse_losses(sae, x, counter, params)
    return _dense_losses(sae, x, counter, params)


def _sparse_losses(
    sae: SparseAutoencoder, x: Tensor, counter: DeadCounter, params: SaeParams
) -> tuple[SaeLosses, Tensor]:
    wanted = counter.candidates(len(x)) if _uses_auxk(params) else None
    codes = ops.search_topk(x, sae.encoder, sae.k, keep=wanted, precision=params.search)
    dead = counter.update(_active(codes, len(counter.age)), len(x))
    aux = None if wanted is None else _auxk_of(codes, wanted, dead, params)
    return SaeLosses(*topk_loss(sae.encoder, sae.atoms, x, codes, aux)), dead


def _active(codes: Codes, latents: int) -> Tensor:
    """Latents with a value above the threshold, (C,) bool; the others meet in a place beyond."""
    places = torch.where(codes.values > ACTIVE_ABOVE, codes.indices, latents).flatten()
    return places.new_zeros(latents + 1, dtype=torch.bool).scatter_(0, places, True)[:latents]


def _auxk_of(codes: Codes, kept: Tensor, dead: Tensor, params: SaeParams) -> AuxK | None:
    """AuxK's part of a search that kept latents (m,); None if none of them is dead."""
    still = dead[kept]
    if not bool(still.any()):
        return None
    return AuxK(
        kept[still],
        codes.kept if bool(still.all()) else codes.kept[:, still],
        params.auxk,
        params.auxk_coef,
        params.auxk_normalised,
    )


def _dense_losses(
    sae: SparseAutoencoder, x: Tensor, counter: DeadCounter, params: SaeParams
) -> tuple[SaeLosses, Tensor]:
    pre, atoms = x @ sae.encoder.t(), sae.atoms
    z, penalty = _training_code(sae, x, pre, params)
    maybe = counter.candidates(len(x)) is not None
    dead = counter.update((z > ACTIVE_ABOVE).any(dim=0), len(x))
    reconstruction, x_hat = _reconstruction(z, atoms, x, params.prefixes)
    auxk = reconstruction.new_zeros(())
    if maybe and _uses_auxk(params) and bool(dead.any()):
        auxk = auxk_loss(pre, atoms, x - x_hat.detach(), dead, params.auxk).mean()
        if params.auxk_normalised:
            auxk = auxk / (x - x_hat).detach().var().clamp_min(1e-12)
    total = reconstruction + params.auxk_coef * auxk + penalty
    return SaeLosses(total, reconstruction.detach(), auxk.detach()), dead


def auxk_loss(pre: Tensor, atoms: Tensor, residual: Tensor, dead: Tensor, auxk: int) -> Tensor:
    """How badly dead latents explain what is left over, for each token.

    The top `auxk` of `pre · dead` are decoded and compared with the residual e = x − x̂.

    Parameters
    ----------
    pre : (n, C)
    atoms : (C, D)
    residual : (n, D)
        Without a gradient.
    dead : (C,) bool
    auxk : int
        512 as published.

    Returns
    -------
    (n,) mean over D of (e − ê)², NaN and infinities as 0
    """
    z = activations.topk_code(pre * dead, min(auxk, len(dead)))
    error = (residual - z @ atoms).pow(2).mean(dim=1)
    return torch.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)


def _uses_auxk(params: SaeParams) -> bool:
    return params.auxk > 0 and params.auxk_coef > 0


def _training_code(
    sae: SparseAutoencoder, x: Tensor, pre: Tensor, params: SaeParams
) -> tuple[Tensor, Tensor | float]:
    """The code of a training batch and the sparsity penalty."""
    if sae.activation == "batch_topk":
        z = activations.batch_topk_code(pre, sae.k)
        _follow_threshold(sae, z.detach())
        return z, 0.0
    if sae.activation == "jumprelu":
        z, step = activations.jump_code(pre, sae.threshold)
        # Zero where a token has k active latents on average. In the unit of the reconstruction,
        # which would otherwise outweigh it on tokens of a larger scale.
        weight = JUMP_PULL * params.sparsity * x.square().mean()
        return z, weight * (step.sum(dim=1).mean() / sae.k - 1).square()
    z = sae.code(pre)
    return z, params.sparsity * z.sum(dim=1).mean() if sae.activation == "relu" else 0.0


_THRESHOLD_DECAY = 0.9


@torch.no_grad()
def _follow_threshold(sae: SparseAutoencoder, z: Tensor) -> None:
    """`batch_topk` after training has no batch: its threshold is a moving average."""
    smallest = torch.where(z > 0, z, torch.inf).min()
    smallest = torch.where(smallest.isfinite(), smallest, sae.threshold)
    started = (sae.threshold > 0).to(z.dtype)
    decay = _THRESHOLD_DECAY * started
    sae.threshold.mul_(decay).add_((1 - decay) * smallest)


def _reconstruction(
    z: Tensor, atoms: Tensor, x: Tensor, prefixes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Loss, and x̂ (n, D) of the whole dictionary.

    With Matryoshka prefixes (Bussmann et al. 2025) the first p latents must explain the tokens
    alone, for every p and for all C; the loss is the mean of them.
    """
    ends = [*(p for p in prefixes if p < len(atoms)), len(atoms)]
    x_hat, found, start = torch.zeros_like(x), [], 0
    for end in ends:
        part = z[:, start:end] @ atoms[start:end]
        x_hat, start = (part if start == 0 else x_hat + part), end
        found.append((x_hat - x).pow(2).mean(dim=1).mean())
    return (found[0] if len(found) == 1 else torch.stack(found).mean()), x_hat
