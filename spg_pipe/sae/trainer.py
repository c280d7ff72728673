"""One SAE with its optimiser: the losses of a step, who is dead, and the step (docs/method.md §2).

`losses` chooses the form: for a large TopK code the closed form on its active latents (`sparse`),
for all else the dense one below, which is the method's text in PyTorch.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import below
from spg_pipe.sae import sparse
from spg_pipe.sae.model import SparseAutoencoder, batch_topk_code, topk_code
from spg_pipe.sae.sparse import AuxK, Codes, TopKLoss

ACTIVE_ABOVE = 1e-3
"""A latent counts as active in a step if any token has z above this (docs/method.md §2)."""
BETAS = (0.5, 0.999)
"""Adam's betas in both stages (docs/method.md §2, §3)."""


@dataclass(frozen=True)
class StepConstants:
    """Numbers of a training step, as published (docs/method.md §2)."""

    lr: float = 1e-3
    """Adam's learning rate, constant."""
    auxk: int = 512
    """Dead latents that explain a token's residual."""
    auxk_coef: float = 1 / 32
    """Weight of their loss."""
    dead_after: int = 10_000_000
    """Tokens without activity after which a latent counts as dead."""


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


class SaeTrainer:
    """One SAE with its optimiser and dead-latent counter, at step 0.

    Parameters
    ----------
    dead_rule : "tokens" | "steps"
        See `DeadCounter`.
    prefixes : tuple of int
        Matryoshka (Bussmann et al. 2025): the first p latents must reconstruct alone.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        dead_rule: str,
        constants: StepConstants,
        prefixes: tuple[int, ...] = (),
    ) -> None:
        self.sae, self.constants, self.prefixes = sae, constants, prefixes
        self.optimizer = torch.optim.Adam(
            sae.parameters(), lr=constants.lr, betas=BETAS, fused=True
        )
        age = torch.zeros(sae.dictionary.shape[0], dtype=torch.int64, device=sae.encoder.device)
        self.counter = DeadCounter(age, dead_rule, constants.dead_after)

    def losses(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        """Losses of tokens x (n, D) float32 and who is dead, (C,) bool; counts their activity."""
        plain = self.sae.activation == "topk" and not self.prefixes
        if plain and not sparse.is_small(len(x), len(self.sae.encoder)):
            return self._sparse_losses(x)
        return self._dense_losses(x)

    def _sparse_losses(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        encoder, k = self.sae.encoder, self.sae.k
        candidates = self.counter.candidates(len(x))
        codes = sparse.search_topk(x, encoder, k, keep=candidates)
        dead = self.counter.update(_active(codes, len(encoder)), len(x))
        aux = None
        if candidates is not None and bool((still := dead[candidates]).any()):
            pre = codes.kept if bool(still.all()) else codes.kept[:, still]
            aux = AuxK(candidates[still], pre, self.constants.auxk, self.constants.auxk_coef)
        return SaeLosses(*TopKLoss.apply(encoder, self.sae.atoms, x, codes, aux)), dead

    def _dense_losses(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        pre, atoms = x @ self.sae.encoder.t(), self.sae.atoms
        z = _training_code(self.sae, pre)
        maybe = self.counter.candidates(len(x)) is not None
        dead = self.counter.update((z > ACTIVE_ABOVE).any(dim=0), len(x))
        reconstruction, x_hat = _reconstruction(z, atoms, x, self.prefixes)
        auxk = reconstruction.new_zeros(())
        if maybe and bool(dead.any()):
            auxk = auxk_loss(pre, atoms, x - x_hat.detach(), dead, self.constants.auxk).mean()
        total = reconstruction + self.constants.auxk_coef * auxk
        return SaeLosses(total, reconstruction.detach(), auxk.detach()), dead

    def step(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        """One Adam step on tokens x (n, D) float32, then unit dictionary rows again.

        The losses, and who is dead, (C,) bool.
        """
        result, dead = self.losses(x)
        self.optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        self.optimizer.step()
        self.sae.renormalise()
        return result, dead

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on: a checkpoint's tensors, not copied."""
        weights = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        return weights | adam_state(self.optimizer) | {"age": self.counter.age}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.sae.load_state_dict(below(tensors, "sae."))
        restore_adam(self.optimizer, tensors)
        self.counter.restore(tensors["age"].to(self.sae.encoder.device, copy=True))


def adam_state(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Steps and averages of every parameter by number, for a checkpoint of either stage."""
    state = optimizer.state_dict()["state"]
    return {f"adam.{n}.{key}": value for n, each in state.items() for key, value in each.items()}


def restore_adam(optimizer: torch.optim.Adam, tensors: dict[str, Tensor]) -> None:
    """Go on from what `adam_state` gave; the optimiser keeps its count of steps where it wants."""
    whole = optimizer.state_dict()
    whole["state"] = {
        n: {key: value.clone() for key, value in below(tensors, f"adam.{n}.").items()}
        for n in whole["param_groups"][0]["params"]
    }
    optimizer.load_state_dict(whole)


def _active(codes: Codes, latents: int) -> Tensor:
    """Latents with a value above the threshold, (C,) bool; the others meet in a place beyond."""
    places = torch.where(codes.values > ACTIVE_ABOVE, codes.indices, latents).flatten()
    return places.new_zeros(latents + 1, dtype=torch.bool).scatter_(0, places, True)[:latents]


def auxk_loss(pre: Tensor, atoms: Tensor, residual: Tensor, dead: Tensor, auxk: int) -> Tensor:
    """How badly dead latents, (C,) bool, explain what is left over, for each token.

    The top `auxk` of `pre · dead` (n, C) are decoded with the atoms (C, D) and compared with the
    residual e = x − x̂ (n, D), which has no gradient: (n,) mean over D of (e − ê)², NaN and
    infinities as 0.
    """
    z = topk_code(pre * dead, min(auxk, len(dead)))
    error = (residual - z @ atoms).pow(2).mean(dim=1)
    return torch.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)


_THRESHOLD_DECAY = 0.9


def _training_code(sae: SparseAutoencoder, pre: Tensor) -> Tensor:
    """The code (n, C) of a training batch.

    `batch_topk` after training has no batch: its threshold is a moving average of the batches'
    smallest values.
    """
    if sae.activation == "topk":
        return topk_code(pre, sae.k)
    z = batch_topk_code(pre, sae.k)
    with torch.no_grad():
        smallest = torch.where(z > 0, z, torch.inf).min()
        smallest = torch.where(smallest.isfinite(), smallest, sae.threshold)
        decay = _THRESHOLD_DECAY * (sae.threshold > 0).to(z.dtype)
        sae.threshold.mul_(decay).add_((1 - decay) * smallest)
    return z


def _reconstruction(
    z: Tensor, atoms: Tensor, x: Tensor, prefixes: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Loss, and x̂ (n, D) of the whole dictionary.

    With Matryoshka prefixes (Bussmann et al. 2025) the first p latents must explain the tokens
    alone, for every p and for all C; the loss is the mean of them.
    """
    ends = [*(p for p in prefixes if p < len(atoms)), len(atoms)]
    x_hat, errors, start = torch.zeros_like(x), [], 0
    for end in ends:
        part = z[:, start:end] @ atoms[start:end]
        x_hat, start = (part if start == 0 else x_hat + part), end
        errors.append((x_hat - x).pow(2).mean(dim=1).mean())
    return (errors[0] if len(errors) == 1 else torch.stack(errors).mean()), x_hat
