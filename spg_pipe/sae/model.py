"""The sparse autoencoder: encoder, dictionary, and the code between them.

| activation | code |
|---|---|
| `topk` | the k largest pre-activations of a token, clamped at 0 (the published one) |
| `batch_topk` | the n·k largest of a batch of n tokens (Bussmann et al. 2024): k on average |
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.sae import sparse

Activation = Literal["topk", "batch_topk"]


class SaeOutput(NamedTuple):
    """What a trained SAE makes of n tokens."""

    x_hat: Tensor
    """(n, D) reconstruction."""
    active: Tensor
    """(C,) int64: how many of the tokens have z > 0."""


class SparseAutoencoder(torch.nn.Module):
    """Encoder `pre = W_e x` without biases, a sparse code, dictionary `A` with unit rows.

    Parameters
    ----------
    dim : int
        Token width D.
    dict_size : int
        Number of latents C.
    k : int
        Active latents a token; on average for `batch_topk`.
    seed : int
        Seed of the initial dictionary: A ~ N(0, 1/C), rows normalised, W_e = A.
    activation : "topk" | "batch_topk"
        How the code is made of the pre-activations.
    """

    threshold: Tensor
    """`batch_topk`: a scalar, what a value must reach after training. `topk` has none."""

    def __init__(
        self,
        dim: int,
        dict_size: int,
        k: int,
        seed: int = 111,
        activation: Activation = "topk",
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(dict_size, dim, generator=generator) / dict_size**0.5
        rows = normalised_rows(rows)
        self.k, self.activation = k, activation
        self.encoder = torch.nn.Parameter(rows.clone())
        self.dictionary = torch.nn.Parameter(rows)
        if activation == "batch_topk":
            self.register_buffer("threshold", torch.zeros(()))

    @property
    def atoms(self) -> Tensor:
        """The dictionary (C, D) with rows A/(‖A‖ + 1e-8), as decoding uses it."""
        return normalised_rows(self.dictionary)

    def code(self, pre: Tensor) -> Tensor:
        """The dense code (n, C) of pre-activations, as after training."""
        if self.activation == "topk":
            return topk_code(pre, self.k)
        return threshold_code(pre, self.threshold)

    @torch.no_grad()
    def forward(self, x: Tensor) -> SaeOutput:
        """Reconstruct tokens x (n, D) float32 with the trained weights, without a gradient."""
        atoms = self.atoms
        if self.activation == "topk":
            codes = sparse.search_topk(x, self.encoder, self.k)
            active = torch.bincount(codes.indices[codes.values > 0], minlength=len(atoms))
            return SaeOutput(sparse.decode(codes.values, codes.indices, atoms), active)
        x_hat, active = torch.empty_like(x), torch.zeros_like(atoms[:, 0], dtype=torch.int64)
        for block in sparse.blocks(len(x), len(atoms), x.device):
            z = self.code(x[block] @ self.encoder.t())
            torch.mm(z, atoms, out=x_hat[block])
            active += (z > 0).sum(dim=0)
        return SaeOutput(x_hat, active)

    @torch.no_grad()
    def renormalise(self) -> None:
        """Make the dictionary's rows unit length in place; the optimiser's state is left alone."""
        self.dictionary.div_(self.dictionary.norm(dim=1, keepdim=True).clamp_min(1e-8))


def normalised_rows(rows: Tensor) -> Tensor:
    """rows/(‖rows‖ + 1e-8), (C, D)."""
    return rows / (rows.norm(dim=1, keepdim=True) + 1e-8)


def sae_input(x: Tensor, norm: str) -> Tensor:
    """Tokens x (n, D) float32 as the SAE sees them; guides and scores use raw tokens.

    `none` as published, or `l2`: of unit length.
    """
    return F.normalize(x, dim=1) if norm == "l2" else x


def topk_code(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row (n, C), clamped at 0; zeros elsewhere."""
    values, indices = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter(1, indices, values.clamp_min(0))


def batch_topk_code(pre: Tensor, k: int) -> Tensor:
    """The n·k largest of a batch (n, C), clamped at 0; zeros elsewhere."""
    count = min(k * len(pre), pre.numel())
    smallest = pre.detach().flatten().topk(count, sorted=False).values.min()
    return threshold_code(pre, smallest.clamp_min(0))


def threshold_code(pre: Tensor, threshold: Tensor) -> Tensor:
    """What is at least the threshold, and above 0."""
    return pre * ((pre >= threshold) & (pre > 0))
