"""The training step of a TopK code on its k active latents alone, in public PyTorch operations.

A dense step multiplies five times by a (tokens × C) code that is zero but for k entries a row. Here
one such product is left, the search for the k largest pre-activations; the code is kept as values
and indices, decoding is a weighted `embedding_bag`, and the gradients in closed form are
`embedding_bag`s over the entries sorted by latent. Same mathematics; sums run in another order.
docs/method.md §2 has the loss, docs/performance.md what this saves.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

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


def search_topk(x: Tensor, encoder: Tensor, k: int, *, keep: Tensor | None = None) -> Codes:
    """The k largest pre-activations of every token, without the (n, C) matrix in memory.

    Parameters
    ----------
    x : (n, D) float32
    encoder : (C, D)
    k : int
    keep : (m,) int64, optional
        Latents whose pre-activations are returned as well (`Codes.kept`).
    """
    n, (latents, _dim) = len(x), encoder.shape
    x, weights = x.detach(), encoder.detach().t()
    values, indices = x.new_empty(n, k), torch.empty(n, k, dtype=torch.int64, device=x.device)
    kept = x.new_empty(n, 0 if keep is None else len(keep))
    pre = None
    for block in blocks(n, latents, x.device):
        rows = x[block]
        if pre is None or len(pre) != len(rows):
            pre = torch.empty(len(rows), latents, dtype=rows.dtype, device=x.device)
        torch.mm(rows, weights, out=pre)
        largest, indices[block] = pre.topk(k, dim=1, sorted=False)
        torch.clamp_min(largest, 0, out=values[block])
        if keep is not None:
            kept[block] = pre.index_select(1, keep)
    return Codes(values, indices, kept)


def decode(values: Tensor, indices: Tensor, dictionary: Tensor) -> Tensor:
    """x̂ (n, D) from k weighted dictionary rows (C, D) a token, without gradients."""
    if is_small(len(values), len(dictionary)):
        code = values.new_zeros(len(values), len(dictionary)).scatter_add_(1, indices, values)
        return code @ dictionary
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
        """Σ over entries of weight (n, k) · row (n, D) of its token, for each latent: (C, D)."""
        entries = weights.reshape(-1)[self.order]
        return F.embedding_bag(
            self.token, rows, self.offsets, per_sample_weights=entries, mode="sum"
        )


def row_dots(rows: Tensor, dictionary: Tensor, indices: Tensor) -> Tensor:
    """rows[t] · dictionary[indices[t, j]], (n, k), of rows (n, D), (C, D) and indices (n, k)."""
    n, k = indices.shape
    if rows.device.type == "cpu" and not torch.backends.mkl.is_available():
        return (rows @ dictionary.t()).gather(1, indices)  # sampled_addmm on a CPU is MKL's
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


class AuxK(NamedTuple):
    """What the auxiliary loss needs."""

    dead: Tensor
    """(m,) int64: the dead latents."""
    pre: Tensor
    """(n, m) their pre-activations."""
    most: int
    """How many a token may use."""
    coef: float


class TopKLoss(torch.autograd.Function):
    """`TopKLoss.apply(encoder, atoms, x, codes, aux)`: the losses of a batch.

    Gradients are computed with the loss, while a block's residual is in the cache.

    Parameters
    ----------
    encoder, atoms : (C, D)
        W_e and the normalised dictionary rows.
    x : (n, D)
        What the `codes` were searched for.
    aux : AuxK, optional
        None where no latent is dead.

    Returns
    -------
    total, reconstruction, auxk : scalars
        Means over tokens and D; total = reconstruction + coef · auxk. It alone has a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, encoder: Tensor, atoms: Tensor, x: Tensor, codes: Codes, aux: AuxK | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        residual, errors, value_grads = _residuals(atoms, x, codes)
        entries = ByLatent.of(codes.indices, len(encoder))
        scale = 2 / x.numel()
        grad_encoder = entries.sum_rows(value_grads, x).mul_(scale)
        grad_atoms = entries.sum_rows(codes.values, residual).mul_(scale)
        reconstruction = errors.mean()
        auxiliary = reconstruction.new_zeros(())
        total = reconstruction
        if aux is not None:
            auxiliary, dead_encoder, dead_atoms = _auxiliary(atoms, x, residual, aux)
            total = reconstruction + aux.coef * auxiliary
            grad_encoder.index_add_(0, aux.dead, dead_encoder.mul_(scale * aux.coef))
            grad_atoms.index_add_(0, aux.dead, dead_atoms.mul_(scale * aux.coef))
        ctx.save_for_backward(grad_encoder, grad_atoms)
        ctx.mark_non_differentiable(reconstruction, auxiliary)
        return total.clone(), reconstruction, auxiliary

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        encoder, atoms = ctx.saved_tensors
        return encoder.mul_(grads[0]), atoms.mul_(grads[0]), None, None, None


def _residuals(atoms: Tensor, x: Tensor, codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ − x (n, D), each token's mean square (n,), and (x̂ − x)·atom of every entry (n, k).

    Entries clamped at 0 get no gradient.
    """
    residual, errors = torch.empty_like(x), x.new_empty(len(x))
    grads = torch.empty_like(codes.values)
    for block in blocks(len(x), len(atoms), x.device):
        values, indices = codes.values[block], codes.indices[block]
        left = torch.sub(decode(values, indices, atoms), x[block], out=residual[block])
        errors[block] = left.square().mean(dim=1)
        dots = row_dots(left, atoms, indices)
        torch.mul(dots, values > 0, out=grads[block])
    return residual, errors, grads


def _auxiliary(
    atoms: Tensor, x: Tensor, residual: Tensor, aux: AuxK
) -> tuple[Tensor, Tensor, Tensor]:
    """AuxK loss, and the sums of its gradients for the dead rows of W_e and A (m, D).

    e = x − x̂ is −`residual`; ê = z A with z the top `most` of the dead latents, clamped at 0. A
    token whose (e − ê)² is not finite counts as 0.
    """
    dead_atoms = atoms[aux.dead]
    grad_encoder, grad_atoms = torch.zeros_like(dead_atoms), torch.zeros_like(dead_atoms)
    errors = x.new_empty(len(x))
    for block in blocks(len(x), len(aux.dead), x.device):
        pre = aux.pre[block]
        if aux.most < pre.shape[1]:
            chosen, indices = pre.topk(aux.most, dim=1, sorted=False)
            z = torch.zeros_like(pre).scatter_(1, indices, chosen.clamp_min_(0))
        else:
            z = pre.clamp_min(0)
        left = torch.addmm(residual[block], z, dead_atoms)
        error = left.square().mean(dim=1)
        good = error.isfinite()
        errors[block] = torch.where(good, error, 0)
        left = torch.where(good[:, None], left, 0)
        grad_atoms.addmm_(z.t(), left)
        grad_encoder.addmm_((left @ dead_atoms.t()).masked_fill_(z == 0, 0).t(), x[block])
    return errors.mean(), grad_encoder, grad_atoms
