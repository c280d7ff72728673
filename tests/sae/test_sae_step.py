"""The whole training step against the literal dense one, AuxK and the dead-latent rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.reference.sae import DenseSae, rows
from spg_pipe.sae import sparse
from spg_pipe.sae.model import SparseAutoencoder, sae_input, topk_code
from spg_pipe.sae.trainer import (
    ACTIVE_ABOVE,
    DeadCounter,
    SaeTrainer,
    StepConstants,
    auxk_loss,
)


def tokens(images: int, patches: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, patches, dim, generator=generator)


def trainer(reference: DenseSae, rule: str = "steps") -> SaeTrainer:
    """Ours with the weights and settings of the literal one."""
    latents, dim = reference.encoder.shape
    constants = StepConstants(auxk=reference.auxk, dead_after=reference.dead_after)
    sae = SparseAutoencoder(dim, latents, reference.k)
    sae.encoder.data = reference.encoder.detach().clone()
    sae.dictionary.data = reference.dictionary.detach().clone()
    return SaeTrainer(sae, rule, constants)


@pytest.fixture(params=[0, 2**21])
def both_forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse and the dense form of the step, whatever the size."""
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", request.param)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("auxk", [3, 512])
def test_eight_steps_equal_the_literal_dense_ones(auxk: int) -> None:
    start = rows(torch.randn(48, 16, generator=torch.Generator().manual_seed(1)))
    reference = DenseSae(start, start, k=3, auxk=auxk, dead_after=40)
    ours = trainer(reference)
    died = 0
    for step in range(8):
        x = tokens(2, 10, 16, seed=step)
        total, reconstruction, auxk_mean, dead = reference.step(x)
        result, our_dead = ours.step(x.flatten(0, 1))
        assert our_dead.equal(dead)
        assert ours.counter.age.equal(reference.age)
        torch.testing.assert_close(result.reconstruction, reconstruction, atol=1e-6, rtol=0)
        torch.testing.assert_close(result.auxk, auxk_mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(result.total, total, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.sae.encoder, reference.encoder, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.sae.dictionary, reference.dictionary, atol=1e-6, rtol=0)
        died += int(dead.sum())
    assert died > 0


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(
    ("patches", "dim", "latents", "k"), [(49, 48, 256, 8), (196, 96, 512, 8), (256, 128, 1024, 16)]
)
def test_five_steps_of_any_size_have_the_bits_of_the_dense_ones(
    patches: int, dim: int, latents: int, k: int, scale: float
) -> None:
    # Adam divides a nearly zero gradient by itself: an error in its last bits becomes a whole step
    # of 1e-3. Tokens near a few prototypes leave latents dead, so that AuxK takes part.
    for seed in range(2):
        start = rows(torch.randn(latents, dim, generator=torch.Generator().manual_seed(seed)))
        reference = DenseSae(start, start, k=k, dead_after=2 * 2 * patches)
        ours = trainer(reference)
        prototypes = 3 * tokens(1, 5, dim, seed=100 + seed)[0]
        died = 0
        for step in range(5):
            near = prototypes[torch.arange(2 * patches) % 5].view(2, patches, dim)
            x = scale * (near + 0.1 * tokens(2, patches, dim, seed=10 * seed + step))
            *_, dead = reference.step(x)
            ours.step(x.flatten(0, 1))
            died += int(dead.sum())
        assert died > 0
        torch.testing.assert_close(ours.sae.encoder, reference.encoder, atol=2e-6, rtol=0)
        torch.testing.assert_close(ours.sae.dictionary, reference.dictionary, atol=2e-6, rtol=0)


@pytest.mark.parametrize("auxk", [2, 7, 512])
def test_auxk_has_the_dense_formulas_value_and_gradients(auxk: int) -> None:
    x = tokens(1, 20, 8)[0].double()
    sae = SparseAutoencoder(8, 24, 3).double()
    sae.dictionary.data *= 1.7  # rows are normalised in the forward pass only
    dead = torch.zeros(24, dtype=torch.bool)
    dead[::3] = True
    residual = (x - sae(x).x_hat).detach()
    losses = auxk_loss(x @ sae.encoder.t(), sae.atoms, residual, dead, auxk)
    gradients = torch.autograd.grad(losses.mean(), [sae.encoder, sae.dictionary])

    encoder, dictionary = (
        p.detach().clone().requires_grad_() for p in (sae.encoder, sae.dictionary)
    )
    guess = topk_code((x @ encoder.t()) * dead, min(auxk, 24)) @ rows(dictionary)
    expected = (residual - guess).pow(2).mean(dim=1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected.mean(), [encoder, dictionary])
    )
    assert gradients[0][dead].abs().sum() > 0  # dead latents do learn, through the encoder too
    assert not gradients[0][~dead].any()


def test_auxk_of_a_residual_that_is_not_finite_counts_as_nothing() -> None:
    sae = SparseAutoencoder(4, 8, 2)
    x = torch.ones(3, 4)
    residual = torch.ones(3, 4)
    residual[1, 2], residual[2, 0] = float("inf"), float("nan")
    pre = x @ sae.encoder.t()
    error = auxk_loss(pre, sae.atoms, residual, torch.ones(8, dtype=torch.bool), 4)
    assert error[0] > 0
    assert error[1:].tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("both_forms")
def test_without_a_dead_latent_the_loss_is_the_mean_over_tokens_and_width() -> None:
    sae = SparseAutoencoder(4, 8, 2)
    x = tokens(1, 6, 4)[0]
    total, reconstruction, auxk = SaeTrainer(sae, "tokens", StepConstants()).losses(x)[0]
    torch.testing.assert_close(reconstruction, (x - sae(x).x_hat).square().sum() / (6 * 4))
    assert float(auxk) == 0
    assert total.equal(reconstruction)


def test_the_first_dictionary_is_tied_unit_and_of_its_seed() -> None:
    one, same, other = (SparseAutoencoder(16, 40, 4, seed=seed) for seed in (1, 1, 2))
    assert one.encoder.equal(one.dictionary)
    assert one.encoder.data_ptr() != one.dictionary.data_ptr()
    torch.testing.assert_close(one.dictionary.norm(dim=1), torch.ones(40))
    assert one.encoder.equal(same.encoder)
    assert not one.encoder.equal(other.encoder)
    assert len(list(one.parameters())) == 2  # no biases


def test_rows_have_unit_length_after_every_step_and_adam_is_left_alone() -> None:
    start = rows(torch.randn(12, 8, generator=torch.Generator().manual_seed(1)))
    ours = trainer(DenseSae(start, start, k=2))
    before = None
    for step in range(3):
        ours.step(tokens(1, 9, 8, seed=step)[0])
        torch.testing.assert_close(ours.sae.dictionary.norm(dim=1), torch.ones(12))
        state = ours.optimizer.state[ours.sae.dictionary]["exp_avg"].clone()
        ours.sae.renormalise()
        assert ours.optimizer.state[ours.sae.dictionary]["exp_avg"].equal(state)
        assert before is None or not state.equal(before)
        before = state


def counted(rule: str, dead_after: int, batches: list[tuple[int, list[int]]]) -> list[list[bool]]:
    """Feed batches of (tokens, active latents) of four latents; who is dead after each."""
    counter = DeadCounter(torch.zeros(4, dtype=torch.int64), rule, dead_after)
    dead = []
    for size, active in batches:
        mask = torch.zeros(4, dtype=torch.bool)
        mask[active] = True
        wanted = counter.candidates(size)
        now = counter.update(mask, size)
        # Whoever is dead was a candidate before, so its pre-activations were kept.
        assert set(torch.nonzero(now)[:, 0].tolist()) <= set(
            [] if wanted is None else wanted.tolist()
        )
        dead.append(now.tolist())
    return dead


def test_spg_counts_steps_against_a_threshold_of_that_batchs_size() -> None:
    # 100 // 20 = 5 steps for the full batches; the short last one of 10 tokens allows 10.
    full = [(20, [0])] * 6
    dead = counted("steps", 100, [*full, (10, [0]), (20, [0, 1])])
    assert [row[1] for row in dead] == [False] * 5 + [True, False, False]
    assert [row[2] for row in dead] == [False] * 5 + [True, False, True]
    assert not any(row[0] for row in dead)


def test_spg_allows_at_least_one_step() -> None:
    dead = counted("steps", 10, [(20, [0]), (20, [0])])
    assert dead == [[False] * 4, [False, True, True, True]]


def test_default_counts_tokens_whatever_the_batches_are() -> None:
    in_full = counted("tokens", 100, [(20, [0])] * 6)
    assert [row[1] for row in in_full] == [False] * 5 + [True]
    in_pieces = counted("tokens", 100, [(7, [0])] * 15)
    assert [row[1] for row in in_pieces] == [False] * 14 + [True]
    mended = counted("tokens", 100, [(60, [0]), (60, [0]), (60, [1]), (30, [0])])
    assert [row[1] for row in mended] == [False, True, False, False]


@pytest.mark.usefixtures("both_forms")
def test_only_values_above_the_threshold_count_as_active() -> None:
    sae = SparseAutoencoder(2, 2, 2)
    sae.encoder.data = torch.tensor([[ACTIVE_ABOVE, 0.0], [2 * ACTIVE_ABOVE, 0.0]])
    ours = SaeTrainer(sae, "steps", StepConstants(dead_after=3))
    x = torch.tensor([[1.0, 0.0]])
    for _ in range(5):
        _, dead = ours.losses(x)
    assert dead.tolist() == [True, False]
    assert ours.counter.age.tolist() == [5, 1]


def test_the_input_is_left_alone_or_has_unit_length() -> None:
    x = 7 * tokens(1, 5, 4)[0]
    torch.testing.assert_close(sae_input(x, "l2").norm(dim=1), torch.ones(5))
    assert sae_input(x, "none") is x
