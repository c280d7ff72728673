"""Codes of tokens: which entries a dictionary gives them, and what these rebuild.

Every dictionary is used through a `Code`, so that learnt atoms, and what they are compared with,
are measured by the same functions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.guides.model import unit
from spg_pipe.sae import sparse
from spg_pipe.sae.model import SparseAutoencoder, sae_input


class Active(NamedTuple):
    """The entries of the codes of n tokens, sorted by token."""

    token: Tensor
    """(m,) int64, row of the batch."""
    latent: Tensor
    """(m,) int64"""
    value: Tensor
    """(m,) float32, above 0 but for `projection_code`."""


Code = Callable[[Tensor], Active]
"""Tokens (n, D) float32 → their entries."""


def sae_code(sae: SparseAutoencoder, norm: str) -> Code:
    """The code of a trained SAE; `norm` is the `sae.input_norm` of its training."""

    @torch.no_grad()
    def code(tokens: Tensor) -> Active:
        x = sae_input(tokens, norm)
        if sae.activation == "topk":
            return _of_largest(x, sae.encoder, sae.k)
        parts = []
        for block in sparse.blocks(len(x), len(sae.encoder), x.device):
            z = sae.code(x[block] @ sae.encoder.t())
            token, latent = torch.nonzero(z > 0, as_tuple=True)
            parts.append((token + block.start, latent, z[token, latent]))
        return Active(*map(torch.cat, zip(*parts, strict=True)))

    return code


def dictionary_code(atoms: Tensor, k: int) -> Code:
    """The k largest products of a token with unit atoms (C, D), where they are above 0.

    A TopK code whose encoder is the dictionary: for directions that nobody trained an encoder for.
    """

    @torch.no_grad()
    def code(tokens: Tensor) -> Active:
        return _of_largest(tokens, atoms, min(k, len(atoms)))

    return code


def projection_code(vectors: Tensor) -> Code:
    """The products of unit tokens with vectors (M, D): an entry for each token and vector."""

    @torch.no_grad()
    def code(tokens: Tensor) -> Active:
        products = unit(tokens) @ vectors.t()
        n, m = products.shape
        token = torch.arange(n, device=tokens.device).repeat_interleave(m)
        latent = torch.arange(m, device=tokens.device).repeat(n)
        return Active(token, latent, products.flatten())

    return code


def _of_largest(x: Tensor, encoder: Tensor, k: int) -> Active:
    found = sparse.search_topk(x, encoder, k)
    token = torch.arange(len(x), device=x.device).repeat_interleave(k)
    entries = Active(token, found.indices.flatten(), found.values.flatten())
    positive = entries.value > 0
    return entries if bool(positive.all()) else Active(*(part[positive] for part in entries))


def decoded(entries: Active, atoms: Tensor, tokens: int) -> Tensor:
    """What the codes of n tokens rebuild with atoms (C, D): (n, D) float32."""
    starts = torch.searchsorted(entries.token, torch.arange(tokens, device=atoms.device))
    return F.embedding_bag(
        entries.latent, atoms, starts, per_sample_weights=entries.value, mode="sum"
    )
