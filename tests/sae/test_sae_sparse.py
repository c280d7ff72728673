"""The closed form on the active latents equals dense autograd (docs/method.md §2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference.sae import topk_code
from spg_pipe.sae import sparse
from spg_pipe.sae.sparse import AuxK, ByLatent, TopKLoss

Problem = tuple[Tensor, Tensor, Tensor, int]


@pytest.fixture(autouse=True)
def large_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of large codes, in several blocks, whatever the size."""
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", 0)
    monkeypatch.setattr(sparse, "_BLOCK_ENTRIES", {"cpu": 40})


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Tokens (n, D), encoder and dictionary (C, D), and k from 1 to C."""
    n, dim, latents = (draw(st.integers(1, 12)) for _ in range(3))
    k = draw(st.integers(1, latents))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, encoder, dictionary = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, dim), (latents, dim), (latents, dim))
    )
    sign = draw(st.sampled_from(["mixed", "positive", "negative"]))
    if sign != "mixed":
        x, encoder = x.abs(), encoder.abs() * (1 if sign == "positive" else -1)
    return x, encoder, dictionary, k


def dense(
    x: Tensor, leaves: list[Tensor], k: int, aux: AuxK | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same losses by autograd: the method's text."""
    pre = x @ leaves[0].t()
    x_hat = topk_code(pre, k) @ leaves[1]
    reconstruction = (x_hat - x).pow(2).mean()
    auxiliary = torch.zeros((), dtype=x.dtype)
    if aux:
        mask = torch.zeros(len(leaves[0]), dtype=torch.bool)
        mask[aux.dead] = True
        guess = topk_code(pre * mask, min(aux.most, len(mask))) @ leaves[1]
        residual = x - x_hat.detach()
        auxiliary = (residual - guess).pow(2).mean()
    return reconstruction + (aux.coef if aux else 0) * auxiliary, reconstruction, auxiliary


def ours(
    x: Tensor, leaves: list[Tensor], k: int, dead: Tensor | None, **options: object
) -> tuple[tuple[Tensor, Tensor, Tensor], AuxK | None]:
    codes = sparse.search_topk(x, leaves[0], k, keep=dead)
    aux = None if dead is None else AuxK(dead, codes.kept, **options)  # type: ignore[arg-type]
    return TopKLoss.apply(leaves[0], leaves[1], x, codes, aux), aux


@given(problem=problems(), data=st.data())
def test_both_losses_have_the_values_and_gradients_of_dense_autograd(
    problem: Problem, data: st.DataObject
) -> None:
    x, encoder, dictionary, k = problem
    some = data.draw(st.sets(st.integers(0, len(encoder) - 1)))
    dead = torch.tensor(sorted(some)) if some else None
    most = data.draw(st.integers(1, max(1, len(some))))
    leaves, twins = ([t.clone().requires_grad_() for t in (encoder, dictionary)] for _ in range(2))
    found, aux = ours(x, leaves, k, dead, most=most, coef=0.3)
    expected = dense(x, twins, k, aux)
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(*p) for p in ((found[0], leaves), (expected[0], twins)))
    torch.testing.assert_close(mine, theirs)


def test_a_residual_that_is_not_finite_counts_as_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x, pre, atoms = (torch.randn(s, generator=generator) for s in ((3, 4), (3, 8), (8, 4)))
    aux = AuxK(torch.arange(8), pre, 2, 1.0)
    residual = torch.randn(3, 4, generator=generator)
    whole = sparse._auxiliary(atoms, x[:1], residual[:1], aux._replace(pre=pre[:1]))
    residual[1, 2], residual[2, 0] = float("inf"), float("nan")
    loss, encoder, dictionary = sparse._auxiliary(atoms, x, residual, aux)
    torch.testing.assert_close(loss, whole[0] / 3)
    torch.testing.assert_close((encoder, dictionary), whole[1:])


@given(problems())
def test_the_search_finds_the_largest(problem: Problem) -> None:
    x, encoder, _, k = problem
    keep = torch.arange(0, len(encoder), 2)
    codes = sparse.search_topk(x, encoder, k, keep=keep)
    pre = x @ encoder.t()
    assert codes.values.shape == codes.indices.shape == (len(x), k)
    assert all(len(set(row)) == k for row in codes.indices.tolist())
    torch.testing.assert_close(codes.values, pre.gather(1, codes.indices).clamp_min(0))
    torch.testing.assert_close(codes.values.sum(dim=1), topk_code(pre, k).sum(dim=1))
    torch.testing.assert_close(codes.kept, pre[:, keep])


def test_equal_pre_activations_still_give_k_different_latents() -> None:
    codes = sparse.search_topk(torch.zeros(3, 2), torch.ones(7, 2), 4)
    assert not codes.values.any()
    assert all(len(set(row)) == 4 for row in codes.indices.tolist())


@pytest.mark.parametrize("latents", [1, 3, 50, 40_000])
def test_rows_are_summed_by_latent(latents: int) -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, latents, (20, 3), generator=generator)
    weights = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    rows = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    expected = torch.zeros(latents, 5, dtype=torch.float64)
    expected.index_add_(0, indices.flatten(), (weights[:, :, None] * rows[:, None]).flatten(0, 1))
    found = ByLatent.of(indices, latents).sum_rows(weights, rows)
    torch.testing.assert_close(found, expected)


def test_gradients_are_the_same_bits_every_time() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 16, generator=generator)
    encoder = torch.randn(64, 16, generator=generator)

    def gradients() -> list[Tensor]:
        leaves = [encoder.clone().requires_grad_() for _ in range(2)]
        (total, _, _), _ = ours(x, leaves, 8, torch.arange(9), most=4, coef=1.0)
        return list(torch.autograd.grad(total, leaves))

    first = gradients()
    for _ in range(3):
        assert all(a.equal(b) for a, b in zip(gradients(), first, strict=True))


def test_pieces_stand_in_where_there_is_no_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(2500, 6, generator=generator)
    dictionary = torch.randn(40, 6, generator=generator)
    chosen = [torch.randperm(40, generator=generator)[:5] for _ in range(2500)]
    indices = torch.stack(chosen)
    expected = (rows[:, None] * dictionary[indices]).sum(dim=2)
    torch.testing.assert_close(sparse.row_dots(rows, dictionary, indices), expected)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    torch.testing.assert_close(sparse.row_dots(rows, dictionary, indices), expected)
