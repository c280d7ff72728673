"""Sparse autoencoder arithmetic on the k active latents alone, in public PyTorch operations.

A dense step multiplies by a (tokens × C) code that is zero but for k entries a row. Here the
code is kept as values and indices: decoding is a weighted `embedding_bag`, the gradients of the
dictionary and of the encoder are `embedding_bag`s over the entries sorted by latent. Same
mathematics; sums run in another order.
"""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Said once a process by PyTorch about a feature that is used here on purpose.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


_DENSE_ENTRIES = 2**22
"""Codes (tokens × C) up to this size are multiplied densely, forwards and backwards: about as fast
there on a CPU core, and rounded as the published dense code is. Adam magnifies last bits: after
five steps the weights then agree with it to 2e-7, and with the sparse sums only to about 1e-4 where
a gradient is nearly zero."""


def select_topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations a token, before the clamp: values and indices (n, k)."""
    values, indices = pre.topk(k, dim=1, sorted=False)
    return values, indices


class _Latents(torch.autograd.Function):
    """Chosen pre-activations; the backward pass touches the chosen rows of W_e only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(x, indices)
        ctx.latents = encoder.shape[0]
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        x, indices = ctx.saved_tensors
        return None, scatter_rows(grads[0], indices, x, ctx.latents), None, None


class _Decode(torch.autograd.Function):
    """x̂ = z A for a sparse z, with gradients for the values and for A."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, dictionary: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, dictionary)
        if is_small(values, len(dictionary)):
            return _dense_code(values, indices, len(dictionary)) @ dictionary
        return F.embedding_bag(indices, dictionary, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        values, indices, dictionary = ctx.saved_tensors
        grad = grads[0].contiguous()
        if is_small(values, len(dictionary)):
            grad_values = (grad @ dictionary.t()).gather(1, indices)
        else:
            grad_values = _row_dots(grad, dictionary, indices)
        grad_dictionary = scatter_rows(values, indices, grad, dictionary.shape[0])
        return grad_values, None, grad_dictionary


def is_small(values: Tensor, latents: int) -> bool:
    """Whether a code (n, C) is multiplied densely."""
    return values.shape[0] * latents <= _DENSE_ENTRIES


def _dense_code(values: Tensor, indices: Tensor, latents: int) -> Tensor:
    """Entries (n, k) as a code (n, C) that is zero elsewhere."""
    return values.new_zeros(values.shape[0], latents).scatter_add_(1, indices, values)


def latent_values(x: Tensor, encoder: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    """Attach the encoder's gradient to pre-activations that were selected without one.

    Parameters
    ----------
    x : (n, D)
    encoder : (C, D)
    values, indices : (n, k)
        What `select_topk` gave for `x @ encoder.T`.
    """
    return _Latents.apply(x, encoder, values, indices)


def decode(values: Tensor, indices: Tensor, dictionary: Tensor) -> Tensor:
    """x̂ (n, D) from k weighted dictionary rows a token.

    Parameters
    ----------
    values, indices : (n, k)
    dictionary : (C, D)
        Normalised rows.
    """
    return _Decode.apply(values, indices, dictionary)


def scatter_rows(weights: Tensor, indices: Tensor, rows: Tensor, count: int) -> Tensor:
    """Σ over entries of weight · row, gathered by latent.

    Parameters
    ----------
    weights, indices : (n, k)
    rows : (n, D)
        Row t belongs to all k entries of token t.
    count : int
        Number of latents C.

    Returns
    -------
    (C, D)
    """
    if is_small(weights, count):
        return _dense_code(weights, indices, count).t() @ rows
    k = indices.shape[1]
    flat = indices.reshape(-1)
    # A stable sort makes the order of the sums, and so their bits, repeatable.
    latents, order = torch.sort(flat.to(torch.int32), stable=True)
    offsets = torch.searchsorted(latents, torch.arange(count, device=flat.device).to(torch.int32))
    return F.embedding_bag(
        order // k, rows, offsets, per_sample_weights=weights.reshape(-1)[order], mode="sum"
    )


def _row_dots(rows: Tensor, dictionary: Tensor, indices: Tensor) -> Tensor:
    """rows[t] · dictionary[indices[t, j]] for every entry, (n, k)."""
    n, k = indices.shape
    if rows.device.type == "cpu" and not torch.backends.mkl.is_available():
        # sampled_addmm on a CPU is MKL's; pieces keep the gathered rows small.
        return torch.cat(
            [
                torch.bmm(dictionary[i], r[:, :, None])[..., 0]
                for i, r in zip(indices.split(1024), rows.split(1024), strict=True)
            ]
        )
    crow = torch.arange(0, n * k + 1, k, device=indices.device)
    ordered, order = torch.sort(indices, dim=1)
    pattern = torch.sparse_csr_tensor(
        crow,
        ordered.reshape(-1),
        torch.zeros(n * k, dtype=rows.dtype, device=rows.device),
        size=(n, dictionary.shape[0]),
        check_invariants=False,
    )
    dots = torch.sparse.sampled_addmm(pattern, rows, dictionary.t(), beta=0.0)
    return torch.empty_like(rows[:, :1].expand(n, k)).scatter(1, order, dots.values().reshape(n, k))
