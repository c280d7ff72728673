"""One SAE with its optimiser: a step, and everything that a resumed run needs."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import below
from spg_pipe.recipe.params import SaeParams
from spg_pipe.sae.activations import batch_threshold
from spg_pipe.sae.losses import DeadCounter, SaeLosses, losses
from spg_pipe.sae.model import SparseAutoencoder

BETAS = (0.5, 0.999)
"""Adam's betas in both stages (docs/method.md §2, §3)."""
JUMP_RATE = 20.0
"""Learning rate of a JumpReLU's thresholds, in `sae.lr` times the tokens' root mean square. They
are as large as pre-activations, and those as tokens; Adam's steps know no scale, and weights that
grow move L0 faster than steps of `sae.lr` could follow."""


@dataclass
class SaeTrainer:
    """One SAE with its optimiser and dead-latent counter."""

    sae: SparseAutoencoder
    optimizer: torch.optim.Adam
    counter: DeadCounter
    params: SaeParams

    @classmethod
    def start(cls, sae: SparseAutoencoder, params: SaeParams, dead_rule: str) -> "SaeTrainer":
        """A trainer at step 0."""
        age = torch.zeros(sae.dictionary.shape[0], dtype=torch.int64, device=sae.encoder.device)
        jump = [sae.threshold] if sae.activation == "jumprelu" else []
        weights = [p for p in sae.parameters() if all(p is not other for other in jump)]
        optimizer = torch.optim.Adam(weights, lr=params.lr, betas=BETAS, fused=True)
        if jump:
            optimizer.add_param_group({"params": jump})
        return cls(sae, optimizer, DeadCounter(age, dead_rule, params.dead_after_tokens), params)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> None:
        """Start what depends on data, from the first batch (n, D): the thresholds of `jumprelu`.

        From 0 they would have to rise by Adam's small steps to where k latents a token are active.
        """
        if self.sae.activation == "jumprelu":
            self.sae.threshold.fill_(batch_threshold(x @ self.sae.encoder.t(), self.sae.k))

    def losses(self, x: Tensor) -> tuple[SaeLosses, Tensor]:
        """Forward pass and losses of tokens x (n, D); counts activity. Also the dead mask (C,)."""
        return losses(self.sae, x, self.counter, self.params)

    def step(self, x: Tensor, progress: float = 0.0) -> tuple[SaeLosses, Tensor]:
        """One Adam step on tokens x (n, D), then unit dictionary rows again.

        Parameters
        ----------
        x : (n, D) float32
            As the SAE sees them (`InputTransform`).
        progress : float
            Share of the run's tokens that was seen before, in [0, 1): the schedule's position.
        """
        result, dead = self.losses(x)
        self.optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        lr = self.params.lr * rate(self.params, progress)
        weights, *jump = self.optimizer.param_groups
        weights["lr"] = lr
        for group in jump:
            group["lr"] = lr * JUMP_RATE * float(x.square().mean().sqrt())
        self.optimizer.step()
        self.sae.renormalise()
        if self.sae.activation == "jumprelu":
            self.sae.threshold.data.clamp_min_(0)
        return result, dead

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on: a checkpoint's tensors, not copied."""
        found = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"adam.{name}.{key}"] = value
        return found | {"age": self.counter.age}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        device = self.sae.encoder.device
        weights = below(tensors, "sae.")
        self.sae.load_state_dict({name: value.to(device) for name, value in weights.items()})
        for name, parameter in self.sae.named_parameters():
            # Adam counts its steps in a tensor that stays on the device with a fused step.
            if saved := below(tensors, f"adam.{name}."):
                self.optimizer.state[parameter] = {
                    key: value.to(device, copy=True) for key, value in saved.items()
                }
        self.counter.restore(tensors["age"].to(device, copy=True))


def rate(params: SaeParams, progress: float) -> float:
    """The learning rate's factor at a share of the run, in [0, 1].

    A linear rise over the first `lr_warmup`, then constant, or falling to 0 as a line or a cosine.
    """
    if progress < params.lr_warmup:
        return (progress + 1e-3) / (params.lr_warmup + 1e-3)
    left = 1 - (progress - params.lr_warmup) / (1 - params.lr_warmup)
    if params.lr_schedule == "linear":
        return left
    if params.lr_schedule == "cosine":
        return 0.5 - 0.5 * math.cos(math.pi * left)
    return 1.0
