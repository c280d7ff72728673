"""What can be seen in one image's tokens: how far each patch lies along the guides' direction, and
how unlike the rest of its image it is. Two dot products a token.

Shapes: B images, T = 1 + N tokens (token 0 is CLS), D token width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spg_pipe.guides.layer import View
from spg_pipe.guides.model import lengths, unit


@dataclass(frozen=True)
class Components:
    """Raw values of one layer, higher is more anomalous."""

    guides: Tensor
    """(B, F, N): x·d of every unit patch token x with each of F directions."""
    dissimilarity: Tensor
    """(B, N): 1 − x·m, with m the mean of the image's own unit patch tokens."""
    image: dict[str, Tensor]
    """(B, F) of the views `cls` and `mean_tokens`, where the guides have them; (B, 1) of
    `dissimilarity`: 1 − ‖m‖², the mean of the patches'."""


def components(tokens: Tensor, directions: Mapping[View, Tensor]) -> Components:
    """Of one layer's tokens.

    Parameters
    ----------
    tokens : (B, 1 + N, D) float32
    directions : dict of view → (F, D)
        `patches`, and `cls` or `mean_tokens` where there are guides for them.
    """
    scale = 1 / lengths(tokens)
    patches = tokens[:, 1:]
    mean = (scale[:, None, 1:] @ patches)[:, 0] / patches.shape[1]
    local = directions["patches"]
    # One product for the guides and the image's own mean: a token is read once.
    sides = torch.cat([local.expand(len(tokens), -1, -1), mean[:, None]], dim=1)
    products = (sides @ patches.transpose(1, 2)) * scale[:, None, 1:]
    image = {"dissimilarity": (1 - mean.square().sum(dim=1))[:, None]}
    if "cls" in directions:
        image["cls"] = (tokens[:, 0] * scale[:, :1]) @ directions["cls"].t()
    if "mean_tokens" in directions:
        image["mean_tokens"] = unit(mean) @ directions["mean_tokens"].t()
    return Components(products[:, :-1], 1 - products[:, -1], image)
