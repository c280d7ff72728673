"""Sparse autoencoder arithmetic on the k active latents alone, in public PyTorch operations.

A dense step multiplies by a (tokens × C) code that is zero but for k entries a row. Here the
code is kept as values and indices: decoding is a weighted `embedding_bag`, the gradients of the
dictionary and of the encoder are `embedding_bag`s over the entries sorted by latent. Same
mathematics; sums run in another order.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Said once a process by PyTorch about a feature that is used here on purpose.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

DENSE_ENTRIES = 2**22
"""Codes (tokens × C) up to this size are multiplied densely, forwards and backwards: about as fast
there on a CPU core, and rounded as the published dense code is. Adam magnifies last bits: after
five steps the weights then agree with it to 2e-7, and with the sparse sums only to about 1e-4 where
a gradient is nearly zero."""

_BLOCK_ENTRIES = {"cpu": 2**23, "cuda": 2**28}
"""Pre-activations (tokens × C) that exist at once: on a CPU 32 MB, the size of a large cache."""


class Codes(NamedTuple):
    """The active latents of n tokens, without gradients."""

    values: Tensor
    """(n, k) float32, clamped at 0."""
    indices: Tensor
    """(n, k) int64 latents of `values`, in no order."""
    kept: Tensor
    """(n, m) pre-activations of the columns that the search was told to keep; m may be 0."""


def is_small(tokens: int, latents: int) -> bool:
    """Whether a code (tokens × latents) is multiplied densely."""
    return tokens * latents <= DENSE_ENTRIES


def blocks(tokens: int, latents: int, device: torch.device) -> Iterator[slice]:
    """Tokens in blocks whose pre-activations fit `_BLOCK_ENTRIES`."""
    size = max(1, _BLOCK_ENTRIES.get(device.type, 2**28) // latents)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def search_topk(
    x: Tensor, encoder: Tensor, k: int, *, keep: Tensor | None = None, precision: str = "fp32"
) -> Codes:
    """The k largest pre-activations of every token, without the (n, C) matrix in memory.

    Parameters
    ----------
    x : (n, D) float32
    encoder : (C, D)
    k : int
    keep : (m,) int64, optional
        Latents whose pre-activations are returned as well (`Codes.kept`).
    precision : "fp32" | "bf16"
        Of the product that the latents are chosen by. The values are float32 in both: with bf16
        those of the chosen latents are computed again.
    """
    n, (latents, _dim) = len(x), encoder.shape
    x, encoder = x.detach(), encoder.detach()
    values, indices = x.new_empty(n, k), torch.empty(n, k, dtype=torch.int64, device=x.device)
    kept = x.new_empty(n, 0 if keep is None else len(keep))
    coarse = precision == "bf16"
    weights = (encoder.bfloat16() if coarse else encoder).t()
    room = None
    for block in blocks(n, latents, x.device):
        rows = x[block].bfloat16() if coarse else x[block]
        if room is None or len(room) != len(rows):
            room = torch.empty(len(rows), latents, dtype=rows.dtype, device=x.device)
        torch.mm(rows, weights, out=room)
        chosen, found = room.topk(k, dim=1, sorted=False)
        if coarse:
            chosen = row_dots(x[block], encoder, found)
        torch.clamp_min(chosen, 0, out=values[block])
        indices[block] = found
        if keep is not None:
            kept[block] = x[block] @ encoder[keep].t() if coarse else room.index_select(1, keep)
    return Codes(values, indices, kept)


def dense_code(values: Tensor, indices: Tensor, latents: int) -> Tensor:
    """Entries (n, k) as a code (n, C) that is zero elsewhere."""
    return values.new_zeros(values.shape[0], latents).scatter_add_(1, indices, values)


def decode(values: Tensor, indices: Tensor, dictionary: Tensor) -> Tensor:
    """x̂ (n, D) from k weighted dictionary rows (C, D) a token, without gradients."""
    if is_small(len(values), len(dictionary)):
        return dense_code(values, indices, len(dictionary)) @ dictionary
    return F.embedding_bag(indices, dictionary, per_sample_weights=values, mode="sum")


class ByLatent(NamedTuple):
    """The entries of a code, sorted by latent: made once for every sum over them."""

    order: Tensor
    """(n·k,) positions in the flattened entries."""
    token: Tensor
    """(n·k,) the token of each."""
    offsets: Tensor
    """(C,) where each latent's entries begin."""

    @classmethod
    def of(cls, indices: Tensor, latents: int) -> "ByLatent":
        """Sort the latents (n, k); stable, so that the order of the sums is repeatable."""
        short = torch.int16 if latents <= 2**15 else torch.int32
        ordered, order = indices.reshape(-1).to(short).sort(stable=True)
        every = torch.arange(latents, device=indices.device).to(short)
        return cls(order, order // indices.shape[1], torch.searchsorted(ordered, every))

    def sum_rows(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Σ over entries of weight · row of its token, for each latent.

        Parameters
        ----------
        weights : (n, k)
        rows : (n, D)

        Returns
        -------
        (C, D)
        """
        entries = weights.reshape(-1)[self.order]
        return F.embedding_bag(
            self.token, rows, self.offsets, per_sample_weights=entries, mode="sum"
        )


def row_dots(rows: Tensor, dictionary: Tensor, indices: Tensor) -> Tensor:
    """rows[t] · dictionary[indices[t, j]] for every entry.

    Parameters
    ----------
    rows : (n, D)
    dictionary : (C, D)
    indices : (n, k) int64

    Returns
    -------
    (n, k)
    """
    n, k = indices.shape
    if rows.device.type == "cpu" and not torch.backends.mkl.is_available():
        # sampled_addmm on a CPU is MKL's; pieces keep the gathered rows at 32 MB.
        size = max(1, 2**23 // (k * rows.shape[1]))
        return torch.cat(
            [
                torch.bmm(dictionary[i], r[:, :, None])[..., 0]
                for i, r in zip(indices.split(size), rows.split(size), strict=True)
            ]
        )
    # Rows of a CSR matrix should be sorted; the product does not need it (tests hold it to that).
    pattern = torch.sparse_csr_tensor(
        torch.arange(0, n * k + 1, k, device=indices.device),
        indices.reshape(-1),
        torch.zeros(n * k, dtype=rows.dtype, device=rows.device),
        size=(n, dictionary.shape[0]),
        check_invariants=False,
    )
    dots = torch.sparse.sampled_addmm(pattern, rows, dictionary.t(), beta=0.0)
    return dots.values().reshape(n, k)
