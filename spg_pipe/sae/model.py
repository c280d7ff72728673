"""The sparse autoencoder: encoder, dictionary, and the code between them."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.sae import activations, ops
from spg_pipe.sae.ops import Codes

Activation = Literal["topk", "batch_topk", "relu", "jumprelu"]


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
    activation : "topk" | "batch_topk" | "relu" | "jumprelu"
        How the code is made of the pre-activations, see `spg_pipe.sae.activations`.
    """

    threshold: Tensor
    """`relu`, `jumprelu`: (C,) learned; `batch_topk`: a scalar, what a value must reach after
    training. `topk` has none."""

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
        if activation in ("relu", "jumprelu"):
            self.threshold = torch.nn.Parameter(torch.zeros(dict_size))
        elif activation == "batch_topk":
            self.register_buffer("threshold", torch.zeros(()))

    @property
    def atoms(self) -> Tensor:
        """The dictionary (C, D) with rows A/(‖A‖ + 1e-8), as decoding uses it."""
        return normalised_rows(self.dictionary)

    def encode(self, x: Tensor) -> Codes:
        """The k active latents of tokens x (n, D); `topk` alone, the others have no fixed number.

        Large inputs are taken in blocks: no (n, C) matrix comes to be.
        """
        return ops.search_topk(x, self.encoder, self.k)

    def code(self, pre: Tensor) -> Tensor:
        """The dense code (n, C) of pre-activations, as after training."""
        if self.activation == "topk":
            return activations.topk_code(pre, self.k)
        if self.activation == "relu":
            return (pre - self.threshold).clamp_min(0)
        return activations.threshold_code(pre, self.threshold)

    @torch.no_grad()
    def forward(self, x: Tensor) -> SaeOutput:
        """Reconstruct tokens x (n, D) float32 with the trained weights, without a gradient."""
        atoms = self.atoms
        if self.activation == "topk":
            codes = self.encode(x)
            active = torch.bincount(codes.indices[codes.values > 0], minlength=len(atoms))
            return SaeOutput(ops.decode(codes.values, codes.indices, atoms), active)
        x_hat, active = torch.empty_like(x), torch.zeros_like(atoms[:, 0], dtype=torch.int64)
        for block in ops.blocks(len(x), len(atoms), x.device):
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


class InputTransform(NamedTuple):
    """What happens to tokens before the SAE sees them; guides and scores use raw tokens."""

    norm: str
    """`none` as published; `l2`: unit length; `center`: x − mean; `standard`: (x − mean)/scale."""
    mean: Tensor | None = None
    """(D,) of the training store's patch tokens."""
    scale: Tensor | None = None
    """Scalar: root mean square of the store's deviations. One number for all dimensions, so that
    the dictionary's directions are those of the raw tokens."""

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens (n, D) float32 as the SAE sees them."""
        if self.norm == "l2":
            return F.normalize(x, dim=1)
        if self.mean is None:
            return x
        centred = x - self.mean
        return centred if self.scale is None else centred.div_(self.scale)
