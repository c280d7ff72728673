"""Sparse arithmetic on the active latents equals dense autograd (docs/method.md §2)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference.sae import topk_code
from spg_pipe.sae import ops

Problem = tuple[Tensor, Tensor, Tensor, int, Tensor]


def autograd(output: Tensor, weights: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * weights).sum(), leaves, materialize_grads=True)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Tokens (n, D), encoder and dictionary (C, D), k from 1 to C, and weights of the output."""
    n, dim, latents = (draw(st.integers(1, 12)) for _ in range(3))
    k = draw(st.integers(1, latents))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x, encoder, dictionary, weights = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, dim), (latents, dim), (latents, dim), (n, dim))
    )
    sign = draw(st.sampled_from(["mixed", "positive", "negative"]))
    if sign != "mixed":
        x, encoder = x.abs(), encoder.abs() * (1 if sign == "positive" else -1)
    return x, encoder, dictionary, k, weights


@pytest.fixture(params=["sparse", "dense"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of decoding, whatever the size."""
    monkeypatch.setattr(ops, "_DENSE_ENTRIES", 0 if request.param == "sparse" else 2**40)
    return request.param


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems())
def test_encode_and_decode_have_the_gradients_of_dense_autograd(
    path: str, problem: Problem
) -> None:
    x, encoder, dictionary, k, weights = problem
    leaves = [t.clone().requires_grad_() for t in (encoder, dictionary)]
    dense = topk_code(x @ leaves[0].t(), k) @ leaves[1]
    expected = autograd(dense, weights, *leaves)

    ours = [t.clone().requires_grad_() for t in (encoder, dictionary)]
    with torch.no_grad():
        chosen, indices = ops.select_topk(x @ ours[0].t(), k)
    values = ops.latent_values(x, ours[0], chosen, indices).clamp_min(0)
    x_hat = ops.decode(values, indices, ours[1])
    got = autograd(x_hat, weights, *ours)

    torch.testing.assert_close(x_hat, dense)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@given(problems())
def test_a_token_never_has_a_latent_twice(
    problem: Problem,
) -> None:
    x, encoder, _, k, _ = problem
    values, indices = ops.select_topk(x @ encoder.t(), k)
    assert values.shape == indices.shape == (len(x), k)
    assert all(len(set(row)) == k for row in indices.tolist())
    torch.testing.assert_close(values, (x @ encoder.t()).gather(1, indices))


def test_equal_pre_activations_still_give_k_different_latents() -> None:
    values, indices = ops.select_topk(torch.zeros(3, 7), 4)
    assert not values.any()
    assert all(len(set(row)) == 4 for row in indices.tolist())


def test_a_value_of_exactly_zero_contributes_nothing() -> None:
    x = torch.tensor([[1.0, 0.0]])
    encoder = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    chosen, indices = ops.select_topk((x @ encoder.t()).detach(), 3)
    values = ops.latent_values(x, encoder, chosen, indices).clamp_min(0)
    x_hat = ops.decode(values, indices, torch.eye(3, 2))
    assert x_hat.tolist() == [[0.0, 0.0]]
    x_hat.sum().backward()
    assert encoder.grad is not None
    assert not encoder.grad[1].any()  # negative: clamped, no gradient


@pytest.mark.parametrize("latents", [1, 3, 50])
def test_scatter_rows_sums_by_latent(latents: int) -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, latents, (20, 3), generator=generator)
    weights = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    rows = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    expected = torch.zeros(latents, 5, dtype=torch.float64)
    expected.index_add_(0, indices.flatten(), (weights[:, :, None] * rows[:, None]).flatten(0, 1))
    torch.testing.assert_close(ops.scatter_rows(weights, indices, rows, latents), expected)


def test_gradients_are_the_same_bits_every_time(path: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 16, generator=generator)
    encoder = torch.randn(64, 16, generator=generator)

    def gradient() -> Tensor:
        leaf = encoder.clone().requires_grad_()
        chosen, indices = ops.select_topk((x @ leaf.t()).detach(), 8)
        values = ops.latent_values(x, leaf, chosen, indices).clamp_min(0)
        return autograd(ops.decode(values, indices, encoder), x, leaf)[0]

    first = gradient()
    assert all(gradient().equal(first) for _ in range(3))


def test_pieces_stand_in_where_there_is_no_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(2500, 6, generator=generator)
    dictionary = torch.randn(40, 6, generator=generator)
    indices = torch.stack([torch.randperm(40, generator=generator)[:5] for _ in range(2500)])
    expected = (rows[:, None] * dictionary[indices]).sum(dim=2)
    torch.testing.assert_close(ops._row_dots(rows, dictionary, indices), expected)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    torch.testing.assert_close(ops._row_dots(rows, dictionary, indices), expected)
