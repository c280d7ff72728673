"""Other codes than the published one, prefixes, schedules, and runs that go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shaped import shaped_store
from tiny import METHOD, SAE
from torch import Tensor

from spg_pipe.datasets import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import SaeParams
from spg_pipe.sae import activations
from spg_pipe.sae.fits import input_transform
from spg_pipe.sae.losses import DeadCounter, losses
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.quality import Quality, frequency_histogram, stability
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.sae.trainer import SaeTrainer, rate
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import ordered_batches

KINDS = ["topk", "batch_topk", "relu", "jumprelu"]


def params(**changes: Any) -> SaeParams:
    return SaeParams.model_validate(SAE.model_dump() | changes)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_learns_and_comes_back_from_disk(
    kind: str, tiny_store: FeatureStore, tmp_path: Path
) -> None:
    settings = params(activation=kind, epochs=30, lr=3e-3)
    begun = train_sae(tiny_store, params(activation=kind, epochs=1, lr=1e-6), METHOD, seed=1)
    trained = train_sae(tiny_store, settings, METHOD, seed=1)
    for layer in tiny_store.layers:
        assert trained.quality[layer]["r2"] > begun.quality[layer]["r2"] + 0.05
    trained.run.save(tmp_path / "sae", trained.quality, trained.curve)
    loaded = SaeRun.load(tmp_path / "sae")
    x = normal(50, 12)
    first, again = trained.run.layers["1"](x), loaded.layers["1"](x)
    assert first.x_hat.equal(again.x_hat)
    assert first.active.equal(again.active)


def test_batch_topk_has_k_active_latents_on_average_and_uneven_tokens() -> None:
    pre = normal(50, 40) * torch.linspace(0.2, 2, 50)[:, None]
    z = activations.batch_topk_code(pre, 3)
    active = (z > 0).sum(dim=1)
    assert int(active.sum()) == 150
    assert int(active.min()) < 3 < int(active.max())
    assert z[z > 0].min() > pre[z == 0].max()


def test_batch_topk_after_training_has_about_k_active_latents(tiny_store: FeatureStore) -> None:
    settings = params(activation="batch_topk", epochs=30)
    quality = train_sae(tiny_store, settings, METHOD, seed=1).quality
    assert quality["1"]["l0"] == pytest.approx(SAE.k, rel=0.3)


def test_an_l1_penalty_makes_relu_codes_sparser(tiny_store: FeatureStore) -> None:
    l0 = [
        train_sae(
            tiny_store, params(activation="relu", sparsity=s, lr=1e-2, epochs=30), METHOD, seed=1
        ).quality["1"]["l0"]
        for s in (0.0, 1.0)
    ]
    assert l0[1] < 0.8 * l0[0]


def test_a_jumprelu_is_driven_towards_k_active_latents(tiny_store: FeatureStore) -> None:
    free, driven = (
        train_sae(
            tiny_store,
            params(activation="jumprelu", sparsity=s, epochs=60, lr=5e-3),
            METHOD,
            seed=1,
        )
        for s in (0.0, 1.0)
    )
    far, near = (abs(run.quality["1"]["l0"] - SAE.k) for run in (free, driven))
    assert near < 0.5 * far
    assert bool((driven.run.layers["1"].threshold >= 0).all())


@pytest.mark.parametrize("k", [2, 4, 8])
@pytest.mark.parametrize("chosen", [{}, {"input_norm": "l2"}, {"input_norm": "center"}])
def test_a_jumprelu_has_about_k_active_latents_after_training(
    tiny_store: FeatureStore, k: int, chosen: dict[str, Any]
) -> None:
    settings = params(activation="jumprelu", k=k, sparsity=1e-3, epochs=40, **chosen)
    quality = train_sae(tiny_store, settings, METHOD, seed=1).quality
    assert quality["1"]["l0"] == pytest.approx(k, rel=0.25)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_a_jumprelu_starts_with_k_active_latents_a_token(scale: float) -> None:
    settings, x = params(activation="jumprelu"), scale * normal(500, 12)
    sae = SparseAutoencoder(12, settings.dict_size, settings.k, 1, "jumprelu")
    trainer = SaeTrainer.start(sae, settings, "tokens")
    trainer.prepare(x)
    assert float(sae(x).active.sum()) / len(x) == pytest.approx(settings.k, rel=0.01)


def test_a_jumprelus_threshold_has_the_gradient_of_a_window_around_it() -> None:
    pre = torch.tensor([[1.0], [0.51], [0.49], [-1.0]])
    threshold = torch.tensor([0.5], requires_grad=True)
    z, step = activations.jump_code(pre, threshold)
    assert z.flatten().tolist() == pytest.approx([1.0, 0.51, 0.0, 0.0])
    step.sum().backward()
    width = activations.BANDWIDTH * float(pre.square().mean().sqrt())
    assert threshold.grad is not None
    assert float(threshold.grad) == pytest.approx(-2 / width)  # two of the four are near


def test_prefixes_are_judged_alone_and_learn_to_stand_alone(tiny_store: FeatureStore) -> None:
    sae, x = SparseAutoencoder(6, 16, 4), normal(30, 6)
    counter = DeadCounter(torch.zeros(16, dtype=torch.int64), "tokens", 10**9)
    settings = SaeParams(dict_size=16, k=4, prefixes=(4, 8))
    found = losses(sae, x, counter, settings)[0].reconstruction
    z = sae.code(x @ sae.encoder.t())
    expected = [(z[:, :p] @ sae.atoms[:p] - x).pow(2).mean() for p in (4, 8, 16)]
    torch.testing.assert_close(found, torch.stack(expected).mean())

    def error_of_first(run: SaeRun) -> float:
        one = run.layers["1"]
        _, batch = next(iter(ordered_batches({"1": TokenSource(tiny_store, "1")}, 16)))
        tokens = batch["1"][:, 1:].flatten(0, 1)
        code = one.code(tokens @ one.encoder.t())
        return float((code[:, :8] @ one.atoms[:8] - tokens).pow(2).mean().detach())

    plain, nested = (
        train_sae(tiny_store, params(prefixes=p, epochs=30), METHOD, seed=1) for p in ((), (8,))
    )
    assert error_of_first(nested.run) < error_of_first(plain.run)
    tokens = tiny_store.tokens("1", np.arange(16)).astype(np.float64).reshape(-1, 12)
    r2 = 1 - error_of_first(nested.run) / tokens.var(axis=0).mean()
    assert nested.quality["1"]["r2_prefixes"] == {"8": pytest.approx(r2, abs=1e-4)}
    assert r2 < nested.quality["1"]["r2"]
    assert "r2_prefixes" not in plain.quality["1"]


@pytest.mark.parametrize("norm", ["center", "standard"])
def test_centred_input_is_the_stores_mean_and_one_scale(
    norm: str, tiny_store: FeatureStore
) -> None:
    tokens = tiny_store.tokens("1", np.arange(16)).astype(np.float64).reshape(-1, 12)
    moved = tokens - tokens.mean(axis=0)
    expected = moved / np.sqrt((moved**2).mean()) if norm == "standard" else moved
    transform = input_transform(tiny_store, "1", norm, "cpu")
    found = transform(torch.from_numpy(tokens).float())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_centring_helps_where_all_tokens_share_a_mean(
    tiny_manifest: Manifest, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    common = 30 * generator.normal(size=8)
    rows = generator.normal(size=(16, 6, 8)).astype(np.float32)
    store = shaped_store(tiny_manifest, tmp_path / "s.zarr", lambda i: common + rows[i], "float32")
    raw, centred = (
        train_sae(store, params(input_norm=norm, epochs=40, dict_size=16, k=2), METHOD, seed=1)
        for norm in ("none", "center")
    )
    assert centred.quality["1"]["r2"] > raw.quality["1"]["r2"] + 0.1


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, 0.8535534, 0.5, 0.1464466]),
        ("linear", 0.5, [0.001996, 0.500998, 1, 0.5]),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    schedule: str, warmup: float, expected: list[float]
) -> None:
    settings = params(lr_schedule=schedule, lr_warmup=warmup)
    found = [rate(settings, progress) for progress in (0.0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_schedule_changes_the_steps(tiny_store: FeatureStore) -> None:
    constant, falling = (
        train_sae(tiny_store, params(lr_schedule=s), METHOD, seed=1).curve.splitlines()
        for s in ("constant", "linear")
    )
    assert constant[:2] == falling[:2]  # the first step has the full rate
    assert constant[3] != falling[3]


def test_a_run_whose_latents_stay_silent_says_so_once_and_early(tiny_store: FeatureStore) -> None:
    said: list[str] = []
    points: list[int] = []
    settings = params(dict_size=3000, k=1, epochs=10)
    train_sae(
        tiny_store,
        settings,
        METHOD,
        seed=1,
        say=lambda message: (said.append(message), points.append(1)),  # type: ignore[func-returns-value]
    )
    assert len(said) == 2  # one a layer
    assert "Layer 1" in said[0]
    assert "the last 512 (after 1,024 of 2,560)" in said[0]
    assert "sae.dict_size" in said[0]


def test_a_run_of_one_epoch_is_warned_of_as_well(tiny_store: FeatureStore) -> None:
    said: list[str] = []
    settings = params(dict_size=3000, k=1, epochs=1, batch_images=1)
    train_sae(tiny_store, settings, METHOD, seed=1, say=said.append)
    assert "the last 128 (after 256 of 256)" in said[0]


@pytest.mark.parametrize("budget", [{"tokens": 150}, {"tokens": 900}, {"epochs": 2}])
def test_a_run_of_a_few_batches_is_not_called_silent(
    tiny_store: FeatureStore, budget: dict[str, int]
) -> None:
    said: list[str] = []
    settings = params(dict_size=3000, k=1, **budget)
    train_sae(tiny_store, settings, METHOD, seed=1, say=said.append)
    assert [note for note in said if "Layer 1" in note] == []


def test_a_run_that_ends_worse_than_the_mean_says_what_to_lower(tiny_store: FeatureStore) -> None:
    said: list[str] = []
    settings = params(lr=2.0, epochs=4)
    found = train_sae(tiny_store, settings, METHOD, seed=1, say=said.append)
    assert all(values["r2"] < 0 for values in found.quality.values())
    assert "Layer 1, dict_size 32, k 4, seed 1: R² -" in said[0]
    assert "Lower sae.lr, or" in said[0]
    settings = params(lr=2.0, epochs=4, activation="relu")
    train_sae(tiny_store, settings, METHOD, seed=1, say=said.append)
    assert any("Lower sae.lr or sae.sparsity" in note for note in said)


def test_a_healthy_run_says_nothing(tiny_store: FeatureStore) -> None:
    said: list[str] = []
    train_sae(tiny_store, params(epochs=10), METHOD, seed=1, say=said.append)
    assert said == []


def test_a_loss_that_is_not_finite_stops_at_the_next_point_of_the_curve(
    tiny_store: FeatureStore,
) -> None:
    with pytest.raises(SpgError, match=r"Layer 1: the loss is .* after [1-9] steps"):
        train_sae(tiny_store, params(lr=1e30, epochs=50), METHOD, seed=1)


def test_frequencies_are_counted_by_decade() -> None:
    found = frequency_histogram(np.array([0.0, 1e-9, 2e-3, 0.5, 1.0]))
    assert len(found["edges"]) == 29
    assert sum(found["latents"]) == 4  # the dead one is in no bin
    assert found["latents"][0] == 1
    assert found["latents"][-1] == 1


def test_quality_names_rare_and_dense_latents(tiny_store: FeatureStore) -> None:
    quality = train_sae(tiny_store, params(dict_size=8, k=4), METHOD, seed=1).quality["1"]
    assert quality["dense_share"] > 0.5  # four of eight a token
    assert quality["almost_dead_share"] is None  # the store has fewer than 100,000 tokens
    active = round((1 - quality["dead_share"]) * 8)
    assert sum(quality["frequencies"]["latents"]) == active


def test_rare_latents_need_enough_tokens_to_be_called_so() -> None:
    frequency = torch.tensor([0.0, 4e-6, 2e-5, 0.3], dtype=torch.float64)
    for tokens, share in ((100_000, None), (250_000, 0.25)):
        found = Quality(frequency == 0, frequency, 0.9, 0.1, 0.3, tokens).summary()
        assert found["almost_dead_share"] == share


def test_stability_is_one_for_the_same_atoms_in_any_order() -> None:
    atoms = torch.nn.functional.normalize(normal(30, 16), dim=1)
    other = torch.nn.functional.normalize(normal(30, 16, seed=1), dim=1)
    assert stability(atoms, atoms.flip(0)) == pytest.approx(1.0, abs=1e-6)
    assert stability(atoms, other) < 0.8
    assert stability(atoms, other) == pytest.approx(stability(other, atoms))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"prefixes": [8, 4]}, "rising numbers below dict_size"),
        ({"prefixes": [32]}, "rising numbers below dict_size"),
        ({"search": "bf16", "activation": "relu"}, "search: bf16"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        params(**changes)
