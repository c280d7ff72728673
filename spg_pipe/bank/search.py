"""Exact nearest neighbours by inner product, on the CPU or on a GPU."""

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

    Parameters
    ----------
    queries : (m, D) float32
    vectors : (n, D) float32
        On the device that multiplies.
    without : slice, optional
        Vectors to leave out; at least k are left.
    """
    found = []
    for part in queries.to(vectors.device).split(max(1, _PRODUCTS // len(vectors))):
        products = part @ vectors.t()
        if without is not None:
            products[:, without] = -torch.inf
        found.append(products.topk(k, dim=1).values.cpu())
    return torch.cat(found)
