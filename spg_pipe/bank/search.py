"""Exact nearest neighbours by inner product, on the CPU or on a GPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Search = Callable[[Tensor, int], Tensor]
"""Queries (m, D) float32 on any device, k → the k largest products of each, (m, k) on the CPU, the
largest first."""
_BLOCK = 1 << 14
"""Queries at a time where PyTorch multiplies: their products with a bank of 10,000 take 0.7 GB."""


def search_among(vectors: Tensor, device: str = "cpu") -> Search:
    """A search among vectors (n, D) float32.

    FAISS on the CPU; on a CUDA device FAISS where it was built for GPUs, otherwise one product in
    PyTorch: a bank is small enough for it, and both are exact.
    """
    import faiss

    place = torch.device(device)
    if place.type != "cpu" and not hasattr(faiss, "StandardGpuResources"):
        return _by_product(vectors.to(place))
    index: Any = faiss.IndexFlatIP(vectors.shape[1])
    if place.type != "cpu":
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), place.index or 0, index)
    index.add(np.ascontiguousarray(vectors.cpu().numpy()))

    def search(queries: Tensor, k: int) -> Tensor:
        found, _ = index.search(np.ascontiguousarray(queries.cpu().numpy()), k)
        return torch.from_numpy(found)

    return search


def _by_product(vectors: Tensor) -> Search:
    def search(queries: Tensor, k: int) -> Tensor:
        parts = queries.to(vectors.device).split(_BLOCK)
        return torch.cat([(part @ vectors.t()).topk(k, dim=1).values.cpu() for part in parts])

    return search
