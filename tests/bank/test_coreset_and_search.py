"""Greedy k-centre is what it says, and every search finds the same neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spg_pipe.bank import search
from spg_pipe.bank.search import PROJECTED, farthest_first, search_among


def random_tokens(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_each_choice_is_the_farthest_from_all_before_it() -> None:
    tokens = random_tokens(60, 5)
    chosen = farthest_first(tokens, 20).tolist()
    distances = torch.cdist(tokens, tokens)
    assert chosen[0] == int((tokens - tokens.mean(dim=0)).norm(dim=1).argmax())
    for step in range(1, 20):
        nearest = distances[:, chosen[:step]].amin(dim=1)
        assert nearest[chosen[step]] == nearest.max()
    assert farthest_first(tokens, 7).tolist() == chosen[:7]


def test_wide_tokens_are_covered_nearly_as_well_through_the_projection() -> None:
    tokens = random_tokens(300, 4 * PROJECTED)
    tokens[:290] = tokens[0] + 0.05 * tokens[:290]  # one crowd, and ten tokens away from it
    chosen = set(farthest_first(tokens, 11).tolist())
    assert set(range(290, 300)) <= chosen
    assert chosen == set(farthest_first(tokens, 11).tolist())


def test_equal_tokens_are_never_chosen_twice() -> None:
    tokens = random_tokens(1, 8).expand(9, 8)
    assert sorted(farthest_first(tokens, 9).tolist()) == list(range(9))


def expected(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> np.ndarray:
    return np.sort((queries @ vectors.t()).numpy(), axis=1)[:, ::-1][:, :k]


@pytest.mark.parametrize("k", [1, 3])
def test_the_search_on_the_cpu_is_exact(k: int) -> None:
    vectors, queries = random_tokens(40, 6), random_tokens(10, 6, seed=1)
    found = search_among(vectors)(queries, k)
    np.testing.assert_allclose(found.numpy(), expected(vectors, queries, k), atol=1e-5)


def test_another_device_than_the_cpu_multiplies(monkeypatch):
    """`meta` stands for a device that is no CPU: FAISS must not be asked, the product is."""
    import faiss

    monkeypatch.setattr(faiss, "IndexFlatIP", None)
    moved: list[str] = []
    multiply = search.highest_products

    def highest(queries: torch.Tensor, vectors: torch.Tensor, k: int) -> torch.Tensor:
        moved.append(vectors.device.type)
        return multiply(queries, tokens, k)  # `meta` has shapes, but no values

    monkeypatch.setattr(search, "highest_products", highest)
    tokens, queries = random_tokens(40, 6), random_tokens(10, 6, seed=1)
    found = search_among(tokens, "meta")(queries, 4)
    np.testing.assert_allclose(found.numpy(), expected(tokens, queries, 4), atol=1e-5)
    assert moved == ["meta"]


def test_products_are_taken_in_blocks_and_without_what_is_left_out(monkeypatch):
    sizes: list[int] = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor,
        "topk",
        lambda values, k, dim: sizes.append(values.numel()) or topk(values, k, dim=dim),
    )
    monkeypatch.setattr(search, "_PRODUCTS", 130)
    vectors, queries = random_tokens(40, 6), random_tokens(10, 6, seed=1)
    found = search.highest_products(queries, vectors, 4, without=slice(5, 12))
    others = torch.cat([vectors[:5], vectors[12:]])
    np.testing.assert_allclose(found.numpy(), expected(others, queries, 4), atol=1e-5)
    assert sizes == [120, 120, 120, 40]
