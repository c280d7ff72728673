"""Guide codes → guide vectors → cosines → probabilities. No SAE forward pass anywhere.

Shapes: B images, T = 1 + N tokens (token 0 is CLS), D token width, C latents, (h, w) patch grid.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.backbones.base import mean_token

TAU = 0.07
"""Temperature of the patch softmax (docs/method.md §3)."""
_EPS = 1e-8


def initial_codes(dict_size: int, seed: int) -> Tensor:
    """0.1 + 0.01·N(0, 1), (4, C) float32: global-normal, global-anomaly, local-normal, …"""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.01 * torch.randn(4, dict_size, generator=generator)


def effective_codes(codes: Tensor, dead: Tensor, top_k: int | None = None) -> Tensor:
    """relu(codes) without dead latents, optionally only the k largest of each row.

    Parameters
    ----------
    codes : (4, C)
        Raw codes.
    dead : (C,) bool
    top_k : int, optional
        Keep the k largest, with a straight-through gradient: every positive, alive code still
        receives one.

    Returns
    -------
    (4, C), ≥ 0
    """
    effective = codes.relu() * (~dead).to(codes.dtype)
    if top_k is None or top_k >= codes.shape[1]:
        return effective
    values, indices = effective.detach().topk(top_k, dim=1)
    hard = torch.zeros_like(effective).scatter(1, indices, values)
    return effective + (hard - effective).detach()


def lengths(vectors: Tensor) -> Tensor:
    """Lengths along the last axis, clamped at 1e-8."""
    return vectors.norm(dim=-1).clamp_min(_EPS)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis."""
    return vectors / lengths(vectors)[..., None]


def cosines(tokens: Tensor, guides: Tensor) -> Tensor:
    """Cosine (..., 4) of every token (..., D) with every guide (4, D)."""
    return unit(tokens) @ unit(guides).t()


def projections(tokens: Tensor, guides: Tensor) -> Tensor:
    """Like `cosines`, but with the guides as long as they are: contrast guides."""
    return unit(tokens) @ guides.t()


class TokenProducts(torch.autograd.Function):
    """Dot products (B, T, G) of tokens (B, T, D), which need no gradient, with guides (G, D).

    The gradient is summed image by image, then over images in float64.

    Adam magnifies the last bits of gradients near zero: in one sum over all tokens they move a
    code by up to 5e-6 in five steps at the published sizes, in this way by less than 2e-6 (and it
    is faster).
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, guides: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return F.linear(tokens, guides)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        each = torch.bmm(grads[0].transpose(1, 2), tokens)
        return None, each.double().sum(0).to(tokens.dtype)


def anomaly_probability(similarity: Tensor, tau: float = TAU) -> Tensor:
    """softmax([normal, anomaly]/τ) of the anomaly entry, (...,) in [0, 1].

    `similarity` (..., 2) are the cosines with a normal and an anomaly guide, in this order.
    """
    return torch.sigmoid((similarity[..., 1] - similarity[..., 0]) / tau)


def detection_feature(
    tokens: Tensor, detection: str, *, first_image: bool = False, kept: Tensor | None = None
) -> Tensor:
    """What the global guides see, (B, D), of tokens (B, 1 + N, D).

    Parameters
    ----------
    detection : "cls" | "mean_tokens"
    first_image : bool
        Protocol spg: `mean_tokens` uses the first image's mean patch token for every image.
    kept : (B, N), optional
        How much each patch counts in the mean.
    """
    if detection == "cls":
        return tokens[:, 0]
    mean = mean_token(tokens[:, 1:], kept)
    return mean[:1].expand_as(mean) if first_image else mean


def to_grid(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Per-patch values (B, N) as a row-major grid (B, h, w)."""
    return patches.reshape(patches.shape[0], *grid)


def upsample(values: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bilinear (align_corners=False) upsampling of grids (B, h, w) to pixels (B, H, W).

    Interpolation is linear in each axis, so it is two small matrix products; their transposes
    give the gradient much faster than the generic kernel does.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows = interpolation(values.shape[1], height).to(values)
    columns = interpolation(values.shape[2], width).to(values)
    return rows @ values @ columns.t()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for later calls, which may need a gradient
def interpolation(source: int, target: int) -> Tensor:
    """Weights (target, source) of one axis, taken from PyTorch's own interpolation; float32."""
    identity = torch.eye(source)[None]
    return F.interpolate(identity, target, mode="linear", align_corners=False)[0].t().contiguous()
