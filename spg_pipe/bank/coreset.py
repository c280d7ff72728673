"""Fewer tokens that cover all: greedy k-centre (Gonzalez; PatchCore's coreset)."""

import torch
from torch import Tensor

PROJECTED = 64
"""Dimensions of the random projection in which distances are taken: each of them is then within
about an eighth, and a step costs D/64 less."""


def farthest_first(tokens: Tensor, keep: int) -> Tensor:
    """Rows of tokens of which none is far: each is the one farthest from those before it.

    The first is the one farthest from the mean.

    Parameters
    ----------
    tokens : (n, D) float32
    keep : int
        At most n.

    Returns
    -------
    (keep,) int64
        All different, in the order of choice: its beginnings are coresets, too.
    """
    points, width = tokens, tokens.shape[1]
    if width > PROJECTED:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(width, PROJECTED, generator=generator) / PROJECTED**0.5
        points = tokens @ matrix.to(tokens.device)
    squares = points.square().sum(dim=1)
    chosen = torch.empty(keep, dtype=torch.int64, device=points.device)
    chosen[0] = (points - points.mean(dim=0)).square().sum(dim=1).argmax()
    nearest = torch.full_like(squares, torch.inf)
    for step in range(keep):
        row = chosen[step]
        distances = squares + squares[row] - 2 * (points @ points[row])
        nearest = torch.minimum(nearest, distances)
        nearest[row] = -torch.inf  # equal tokens: rounding must not choose one twice
        if step + 1 < keep:
            chosen[step + 1] = nearest.argmax()
    return chosen.to(tokens.device)
