"""Batch TopK, prefixes, what is said of runs that go wrong, and the quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import METHOD, SAE, sae_params
from torch import Tensor

from spg_pipe.sae.model import SparseAutoencoder, batch_topk_code
from spg_pipe.sae.quality import Quality, stability
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import Callbacks, train_sae
from spg_pipe.sae.trainer import SaeTrainer, StepConstants
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import ordered_batches


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_every_activation_learns_and_comes_back_from_disk(
    kind: str, tiny_store: FeatureStore, tmp_path: Path
) -> None:
    begun, trained = (
        train_sae(tiny_store, sae_params(activation=kind, **length), METHOD, seed=1)
        for length in ({"tokens": 1}, {"epochs": 30})
    )
    for layer, quality in trained.quality.layers.items():
        assert quality.r2 > begun.quality.layers[layer].r2 + 0.05
    assert trained.quality.layers["1"].l0 == pytest.approx(SAE.k, rel=0.3)
    trained.run.save(tmp_path / "sae", trained.quality, trained.curve)
    loaded = SaeRun.load(tmp_path / "sae")
    x = normal(50, 12)
    for first, again in zip(trained.run.layers["1"](x), loaded.layers["1"](x), strict=True):
        assert first.equal(again)


def test_batch_topk_has_k_active_latents_on_average_and_uneven_tokens() -> None:
    pre = normal(50, 40) * torch.linspace(0.2, 2, 50)[:, None]
    z = batch_topk_code(pre, 3)
    active = (z > 0).sum(dim=1)
    assert int(active.sum()) == 150
    assert int(active.min()) < 3 < int(active.max())
    assert z[z > 0].min() > pre[z == 0].max()


def test_prefixes_are_judged_alone_and_learn_to_stand_alone(tiny_store: FeatureStore) -> None:
    sae, x = SparseAutoencoder(6, 16, 4), normal(30, 6)
    trainer = SaeTrainer(sae, "tokens", StepConstants(), prefixes=(4, 8))
    found = trainer.losses(x)[0].reconstruction
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
        train_sae(tiny_store, sae_params(prefixes=p, epochs=30), METHOD, seed=1) for p in ((), (8,))
    )
    assert error_of_first(nested.run) < error_of_first(plain.run)
    tokens = tiny_store.tokens("1", np.arange(16)).astype(np.float64).reshape(-1, 12)
    r2 = 1 - error_of_first(nested.run) / tokens.var(axis=0).mean()
    assert nested.quality.layers["1"].r2_prefixes == {"8": pytest.approx(r2, abs=1e-4)}
    assert r2 < nested.quality.layers["1"].r2
    assert plain.quality.layers["1"].r2_prefixes == {}


def said_of(store: FeatureStore, **changes: Any) -> list[str]:
    """What a person is told of a training."""
    said: list[str] = []
    train_sae(store, sae_params(**changes), METHOD, seed=1, callbacks=Callbacks(say=said.append))
    return said


def test_a_run_whose_latents_are_mostly_dead_says_so(tiny_store: FeatureStore) -> None:
    said = said_of(tiny_store, dict_size=3000, k=1, epochs=2)
    assert len(said) == 2  # one a layer
    for part in ("Layer 1", "of the latents are dead", "sae.dict_size"):
        assert part in said[0]
    assert said_of(tiny_store, epochs=10) == []


def test_latents_are_counted_by_how_often_they_are_active() -> None:
    frequency = torch.tensor([0.0, 1e-9, 4e-6, 2e-5, 0.3, 1.0], dtype=torch.float64)
    for tokens, share in ((100_000, None), (250_000, 2 / 6)):  # of few tokens one is no rare event
        measured = Quality(frequency == 0, frequency, 0.1, tokens, {})
        record = measured.record(tokens_seen=tokens, steps=1, epochs=1.0)
        assert (record.almost_dead_share, record.dense_share) == (share, 2 / 6)
        assert record.l0 == pytest.approx(1.3, abs=1e-3)
        latents = record.frequencies.latents
        assert len(record.frequencies.edges) == 29
        assert (sum(latents), latents[0], latents[-1]) == (5, 1, 1)  # the dead one is in no bin


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
        ({"activation": "relu"}, "topk"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        sae_params(**changes)
