"""The TopK loss with its gradients in closed form, on the active latents alone.

What a dense step spends: five products of (tokens × C) with (C × D). Here one is left, the search
for the k largest pre-activations (`ops.search_topk`); everything after it touches k rows a token.
docs/method.md §2 has the loss, docs/performance.md what this saves.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spg_pipe.sae import ops
from spg_pipe.sae.ops import ByLatent, Codes

AUXK_GATHER = 14
"""A gathered row costs about as much as this many columns of a dense product (two CPU cores): AuxK
takes the sparse path where it decodes fewer than 1/14 of the dead latents."""


class AuxK(NamedTuple):
    """What the auxiliary loss needs."""

    dead: Tensor
    """(m,) int64: the dead latents."""
    pre: Tensor
    """(n, m) their pre-activations."""
    most: int
    """How many a token may use."""
    coef: float
    normalised: bool


def topk_loss(
    encoder: Tensor, atoms: Tensor, x: Tensor, codes: Codes, aux: AuxK | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, reconstruction and AuxK loss of a batch; only the total has a gradient.

    Parameters
    ----------
    encoder : (C, D)
    atoms : (C, D)
        Normalised dictionary rows.
    x : (n, D)
        What the codes were searched for.
    codes : Codes
    aux : AuxK, optional
        None where no latent is dead.

    Returns
    -------
    total, reconstruction, auxk : scalars
        Means over tokens and D; total = reconstruction + coef · auxk.
    """
    return _TopKLoss.apply(encoder, atoms, x, codes, aux)


class _TopKLoss(torch.autograd.Function):
    """Gradients are computed with the loss, while a block's residual is in the cache."""

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
            auxiliary, factor, dead_encoder, dead_atoms = _auxiliary(atoms, x, residual, aux)
            total = reconstruction + aux.coef * auxiliary
            grad_encoder.index_add_(0, aux.dead, dead_encoder.mul_(scale * factor))
            grad_atoms.index_add_(0, aux.dead, dead_atoms.mul_(scale * factor))
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
    for block in ops.blocks(len(x), len(atoms), x.device):
        values, indices = codes.values[block], codes.indices[block]
        place = torch.sub(ops.decode(values, indices, atoms), x[block], out=residual[block])
        errors[block] = place.square().mean(dim=1)
        dots = ops.row_dots(place, atoms, indices)
        torch.mul(dots, values > 0, out=grads[block])
    return residual, errors, grads


def _auxiliary(
    atoms: Tensor, x: Tensor, residual: Tensor, aux: AuxK
) -> tuple[Tensor, Tensor | float, Tensor, Tensor]:
    """AuxK loss, the factor of its gradients, and these for the dead rows of W_e and A (m, D).

    e = x − x̂ is −`residual`; ê = z A with z the top `count` of the dead latents, clamped at 0.
    """
    dead_atoms = atoms[aux.dead]
    sparse = aux.most * AUXK_GATHER < len(aux.dead)
    work = _sparse_block if sparse else _dense_block
    grad_encoder, grad_atoms = torch.zeros_like(dead_atoms), torch.zeros_like(dead_atoms)
    errors = x.new_empty(len(x))
    for block in ops.blocks(len(x), len(aux.dead), x.device):
        place = (x[block], residual[block], aux.pre[block])
        errors[block] = work(*place, dead_atoms, aux.most, grad_encoder, grad_atoms)
    loss, factor = errors.mean(), torch.as_tensor(aux.coef, dtype=x.dtype, device=x.device)
    if aux.normalised:
        variance = residual.var().clamp_min(1e-12)
        loss, factor = loss / variance, factor / variance
    return loss, factor, grad_encoder, grad_atoms


def _dense_block(
    x: Tensor,
    residual: Tensor,
    pre: Tensor,
    atoms: Tensor,
    count: int,
    grad_encoder: Tensor,
    grad_atoms: Tensor,
) -> Tensor:
    """Mean squares (b,) of one block; adds to the gradients of the dead rows."""
    if count < pre.shape[1]:
        chosen, indices = pre.topk(count, dim=1, sorted=False)
        z = torch.zeros_like(pre).scatter_(1, indices, chosen.clamp_min_(0))
    else:
        z = pre.clamp_min(0)
    error, left = _finite(torch.addmm(residual, z, atoms))
    grad_atoms.addmm_(z.t(), left)
    grad_encoder.addmm_((left @ atoms.t()).masked_fill_(z == 0, 0).t(), x)
    return error


def _sparse_block(
    x: Tensor,
    residual: Tensor,
    pre: Tensor,
    atoms: Tensor,
    count: int,
    grad_encoder: Tensor,
    grad_atoms: Tensor,
) -> Tensor:
    """As `_dense_block`, on the chosen entries alone."""
    indices = pre.topk(count, dim=1, sorted=False)[1]
    z = pre.gather(1, indices).clamp_min_(0)
    error, left = _finite(ops.decode(z, indices, atoms).add_(residual))
    entries = ByLatent.of(indices, len(atoms))
    grad_atoms += entries.sum_rows(z, left)
    dots = ops.row_dots(left, atoms, indices)
    grad_encoder += entries.sum_rows(dots.mul_(z > 0), x)
    return error


def _finite(left: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares (b,) with NaN and infinities as 0, and ê − e (b, D) without such tokens."""
    error = left.square().mean(dim=1)
    good = error.isfinite()
    return torch.where(good, error, 0), torch.where(good[:, None], left, 0)
