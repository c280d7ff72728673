"""From pre-activations to codes: which latents explain a token. All dense, with autograd.

| name | code | sparsity comes from |
|---|---|---|
| `topk` | the k largest of a token, clamped at 0 (the published one) | k |
| `batch_topk` | the n·k largest of a batch of n tokens (Bussmann et al. 2024) | k, on average |
| `relu` | what rises above its latent's learned threshold | an L1 penalty |
| `jumprelu` | as it is, if above that threshold (Rajamanoharan et al. 2024) | an L0 penalty |

Large TopK codes never come here: see `sparse_loss`.
"""

from typing import Any

import torch
from torch import Tensor

BANDWIDTH = 0.1
"""Width, in pre-activations, of the window in which a JumpReLU's step has a gradient. Tokens are
not normalised as published, so thresholds are learned on the scale of the pre-activations: the
window is this share of their root mean square."""


def topk_code(pre: Tensor, k: int) -> Tensor:
    """The k largest of each row (n, C), clamped at 0; zeros elsewhere."""
    values, indices = pre.topk(k, dim=1, sorted=False)
    return torch.zeros_like(pre).scatter(1, indices, values.clamp_min(0))


def batch_threshold(pre: Tensor, k: int) -> Tensor:
    """The n·k-th largest of a batch (n, C), at least 0: a scalar that k a token reach."""
    count = min(k * len(pre), pre.numel())
    return pre.detach().flatten().topk(count, sorted=False).values.min().clamp_min(0)


def batch_topk_code(pre: Tensor, k: int) -> Tensor:
    """The n·k largest of a batch (n, C), clamped at 0; zeros elsewhere."""
    return threshold_code(pre, batch_threshold(pre, k))


def threshold_code(pre: Tensor, threshold: Tensor) -> Tensor:
    """What is at least the threshold, and above 0."""
    return pre * ((pre >= threshold) & (pre > 0))


class _Step(torch.autograd.Function):
    """1 where pre > threshold, with the gradient of a window's mean around the step."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, width: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold, width)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold, width = ctx.saved_tensors
        near = ((pre - threshold).abs() < width / 2) / width
        return None, -(grads[0] * near).sum(dim=0), None


def jump_code(pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The JumpReLU's code (n, C) and its step, whose sum is L0.

    Parameters
    ----------
    pre : (n, C)
    threshold : (C,) ≥ 0, learned through the step's straight-through gradient.
    """
    width = BANDWIDTH * pre.detach().square().mean().sqrt().clamp_min(1e-12)
    step = _Step.apply(pre, threshold, width)
    return pre.clamp_min(0) * step, step
