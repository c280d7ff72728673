"""Exact nearest neighbours by inner product, and fewer tokens that cover all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Search = Callable[[Tensor, int], Tensor]
"""Queries (m, D) float32 on any device, k → the k largest products of each, (m, k) on the CPU, the
largest first."""
_PRODUCTS = 1 << 24
"""Products at a time where PyTorch multiplies: they take 64 MB, whatever the bank's size."""
PROJECTED = 64
"""Dimensions of the random projection in which distances are taken: each of them is then within
about an eighth, and a step costs D/64 less."""


def search_among(vectors: Tensor, device: str = "cpu") -> Search:
    """A search among vectors (n, D) float32.

    FAISS on the CPU; elsewhere one product in PyTorch, for which a bank is small enough. Both are
    exact.
    """
    import faiss

    if torch.device(device).type != "cpu":
        moved = vectors.to(device)
        return lambda queries, k: highest_products(queries, moved, k)
    index: Any = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors.numpy()))

    def search(queries: Tensor, k: int) -> Tensor:
        found, _ = index.search(np.ascontiguousarray(queries.cpu().numpy()), k)
        return torch.from_numpy(found)

    return search


def highest_products(
    queries: Tensor, vectors: Tensor, k: int, *, without: slice | None = None
) -> Tensor:
    """The k largest products of each query, (m, k) on the CPU, by multiplication in blocks.

    `queries` (m, D) and `vectors` (n, D) are float32, these on the device that multiplies;
    `without` leaves some of them out, and k at least in.
    """
    found = []
    for part in queries.to(vectors.device).split(max(1, _PRODUCTS // len(vectors))):
        products = part @ vectors.t()
        if without is not None:
            products[:, without] = -torch.inf
        found.append(products.topk(k, dim=1).values.cpu())
    return torch.cat(found)


def highest_by_image(queries: Tensor, images: Tensor, k: int) -> Tensor:
    """The k largest products of each query with the vectors of each image: (m, n, k) on the CPU.

    Fewer than k vectors are filled up with −∞. `queries` (m, D) and `images` (n, N, D) are
    float32, these on the device that multiplies.
    """
    count, size, width = images.shape
    found = torch.full((len(queries), count, k), -torch.inf)
    step = max(1, _PRODUCTS // (count * size))
    for start in range(0, len(queries), step):
        products = queries[start : start + step] @ images.view(-1, width).t()
        best = products.view(-1, count, size).topk(min(k, size), dim=2).values
        found[start : start + step, :, : best.shape[2]] = best.cpu()
    return found


def farthest_first(tokens: Tensor, keep: int) -> Tensor:
    """Rows of tokens of which none is far: each is the one farthest from those before it.

    Greedy k-centre (Gonzalez; PatchCore's coreset). The first is the one farthest from the mean.

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
