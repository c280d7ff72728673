"""The published SAE step written out literally: dense codes, plain autograd (docs/method.md §2)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def rows(dictionary: Tensor) -> Tensor:
    """A/(‖A‖ + 1e-8), (C, D)."""
    return dictionary / (dictionary.norm(dim=1, keepdim=True) + 1e-8)


def topk_code(pre: Tensor, k: int) -> Tensor:
    """The k largest along C clamped at 0, zeros elsewhere; as dense as `pre`."""
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.clamp_min(0))


@dataclass
class DenseSae:
    """Weights, counters and optimiser of `protocol: spg`."""

    encoder: Tensor
    dictionary: Tensor
    k: int
    auxk: int = 512
    auxk_coef: float = 1 / 32
    dead_after: int = 10_000_000
    age: Tensor = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = self.encoder.clone().requires_grad_()
        self.dictionary = self.dictionary.clone().requires_grad_()
        self.age = torch.zeros(len(self.encoder), dtype=torch.int64)
        self.optimizer = torch.optim.Adam(
            [self.encoder, self.dictionary], lr=1e-3, betas=(0.5, 0.999)
        )

    def loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Total, reconstruction, AuxK and dead mask of a batch (B, N, D); counts activity."""
        atoms = rows(self.dictionary)
        pre = x @ self.encoder.t()
        z = topk_code(pre, self.k)
        x_hat = z @ atoms
        reconstruction = (x_hat - x).pow(2).mean(dim=-1).mean()
        active = (z > 1e-3).any(dim=1).any(dim=0)
        self.age = self.age * (~active) + 1
        dead = self.age > max(1, self.dead_after // (x.shape[0] * x.shape[1]))
        auxk = torch.zeros(())
        if dead.any():
            residual = x - x_hat.detach()
            guess = topk_code(pre * dead, min(self.auxk, len(dead))) @ atoms
            auxk = torch.nan_to_num((residual - guess).pow(2).mean(dim=-1)).mean()
        return reconstruction + self.auxk_coef * auxk, reconstruction, auxk, dead

    def step(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One Adam step, then unit rows again."""
        result = self.loss(x)
        self.optimizer.zero_grad()
        result[0].backward()
        self.optimizer.step()
        with torch.no_grad():
            self.dictionary /= self.dictionary.norm(dim=1, keepdim=True).clamp_min(1e-8)
        return result
