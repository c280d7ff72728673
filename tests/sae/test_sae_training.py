"""Training on a store: what is seen, how it is judged, that it repeats, save and load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import METHOD, SAE, files, sae_params

from benchmarks.reference.sae import rows, topk_code
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import MethodParams
from spg_pipe.sae import train as train_module
from spg_pipe.sae.model import SparseAutoencoder
from spg_pipe.sae.quality import measure
from spg_pipe.sae.run import LayerQuality, SaeRun, read_quality
from spg_pipe.sae.train import CONSTANTS, Callbacks, SaeResult, steps_of, train_sae
from spg_pipe.sae.trainer import SaeTrainer, StepConstants
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches


def run(
    store: FeatureStore, seed: int = 111, protocol: str = "default", **changes: Any
) -> SaeResult:
    return train_sae(store, sae_params(**changes), MethodParams(protocol=protocol), seed=seed)


def quality_of(store: FeatureStore, **changes: Any) -> dict[str, LayerQuality]:
    return run(store, **changes).quality.layers


def everything(store: FeatureStore, layer: str) -> torch.Tensor:
    flat = store.tokens(layer, np.arange(len(store))).astype(np.float32)
    return torch.from_numpy(flat.reshape(-1, flat.shape[-1]))


def test_two_runs_give_the_same_bytes_and_another_seed_does_not(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    first, again, other = (run(tiny_store, seed=seed) for seed in (1, 1, 2))
    for name, (trained, quality, curve) in (("a", first), ("b", again)):
        trained.save(tmp_path / name, quality, curve)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    for layer, sae in first.run.layers.items():
        assert not sae.encoder.equal(other.run.layers[layer].encoder)
    assert first.run.record.fingerprint != other.run.record.fingerprint


@pytest.mark.parametrize(
    ("changes", "seen", "steps"),
    [
        ({"epochs": 3}, {"1": 3 * 16 * 16, "2": 3 * 16 * 4}, 3 * 4),  # every patch token each time
        # A budget ends with the batch that reaches it: of 4 images of 16 or 4 patches.
        ({"tokens": 300, "epochs": 1}, {"1": 320, "2": 304}, 5),
        # Batches of tokens cross images.
        ({"batch_images": None, "batch_tokens": 100, "epochs": 2}, {"1": 512, "2": 128}, 2 * 3),
    ],
)
def test_a_run_sees_its_epochs_or_its_budget_of_tokens(
    tiny_store: FeatureStore, changes: dict[str, Any], seen: dict[str, int], steps: int
) -> None:
    quality = quality_of(tiny_store, **changes)
    assert {layer: figures.tokens_seen for layer, figures in quality.items()} == seen
    assert quality["1"].steps == steps
    assert quality["1"].epochs == seen["1"] / 256
    params = sae_params(**changes)
    for (layer, figures), patches in zip(quality.items(), (16, 4), strict=True):
        assert figures.steps == steps_of(params, 16, patches), layer


def test_a_layer_does_not_depend_on_the_others(tiny_store: FeatureStore) -> None:
    together = run(tiny_store)[0]
    sae = SparseAutoencoder(8, 32, 4, seed=111)
    assert together.layers["2"].encoder.shape == sae.encoder.shape
    trainer = SaeTrainer(sae, "tokens", CONSTANTS)
    for epoch in range(SAE.epochs):
        for x in token_batches(
            TokenSource(tiny_store, "2"), seed=111, epoch=epoch, batch_images=SAE.batch_images
        ):
            trainer.step(x.float())
    assert trainer.sae.encoder.equal(together.layers["2"].encoder)


def test_the_class_token_is_never_trained_on(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    true = SaeTrainer.step

    def spy(self: SaeTrainer, x: torch.Tensor) -> Any:
        seen.append(x)
        return true(self, x)

    monkeypatch.setattr(SaeTrainer, "step", spy)
    run(tiny_store, epochs=1)
    patches = torch.cat([x for x in seen if x.shape[1] == 12])
    assert len(patches) == 16 * 16
    cls = torch.from_numpy(tiny_store.cls("1", np.arange(16)).astype(np.float32))
    assert not (patches[:, None] == cls[None]).all(dim=2).any()


@pytest.mark.parametrize("norm", ["none", "l2"])
def test_quality_is_what_numpy_computes(tiny_store: FeatureStore, norm: str) -> None:
    trained = run(tiny_store, input_norm=norm)[0]
    for layer, sae in trained.layers.items():
        found = measure(sae, TokenSource(tiny_store, layer), norm=norm, count_cls=False)
        x = everything(tiny_store, layer)
        x = x if norm == "none" else torch.nn.functional.normalize(x, dim=1)
        z = topk_code(x @ sae.encoder.detach().t(), SAE.k)
        error = (x - z @ rows(sae.dictionary.detach())).double().square().sum()
        variance = (x.double() - x.double().mean(dim=0)).square().sum()
        assert found.fvu == pytest.approx(float(error / variance), rel=1e-5)
        assert found.r2 == pytest.approx(1 - found.fvu)
        assert float(found.frequency.sum()) == pytest.approx(float((z > 0).sum()) / len(x))
        assert found.dead.equal(~(z > 0).any(dim=0))


def test_the_dead_mask_counts_class_tokens_in_protocol_spg_alone(
    tiny_store: FeatureStore,
) -> None:
    sae = run(tiny_store)[0].layers["1"]
    patches = measure(sae, TokenSource(tiny_store, "1"), norm="none", count_cls=False)
    both = measure(sae, TokenSource(tiny_store, "1"), norm="none", count_cls=True)
    cls = torch.from_numpy(tiny_store.cls("1", np.arange(16)).astype(np.float32))
    woken = (topk_code(cls @ sae.encoder.detach().t(), SAE.k) > 0).any(dim=0)
    assert both.dead.equal(patches.dead & ~woken)
    assert (both.r2, both.frequency.tolist()) == (patches.r2, patches.frequency.tolist())


@pytest.mark.parametrize(("protocol", "counts"), [("default", False), ("spg", True)])
def test_the_protocol_decides_the_dead_rule_and_the_dead_mask(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch, protocol: str, counts: bool
) -> None:
    rules: list[str] = []
    masks: list[bool] = []
    true_measure = train_module.measure

    def started(sae: Any, rule: str, *others: Any) -> Any:
        rules.append(rule)
        return SaeTrainer(sae, rule, *others)

    def spied(*args: Any, **others: Any) -> Any:
        masks.append(others["count_cls"])
        return true_measure(*args, **others)

    monkeypatch.setattr(train_module, "SaeTrainer", started)
    monkeypatch.setattr(train_module, "measure", spied)
    result, quality, _ = run(tiny_store, protocol=protocol, epochs=1)
    assert set(rules) == {"steps" if counts else "tokens"}
    assert masks == [counts, counts]
    assert result.record.protocol.name == quality.protocol == protocol


def test_save_and_load_give_the_same_run(tiny_store: FeatureStore, tmp_path: Path) -> None:
    trained, quality, curve = run(tiny_store)
    trained.save(tmp_path / "sae", quality, curve)
    loaded = SaeRun.load(tmp_path / "sae")
    assert loaded.record.model_copy(update={"tensors_sha256": ""}) == trained.record
    x = everything(tiny_store, "1")
    for layer, sae in trained.layers.items():
        assert loaded.dead[layer].equal(trained.dead[layer])
        assert loaded.layers[layer].k == SAE.k
        assert loaded.layers[layer].atoms.equal(sae.atoms)
    assert loaded.layers["1"](x).x_hat.equal(trained.layers["1"](x).x_hat)
    # As JSON, because NaN does not equal itself.
    again, first = (
        {layer: figures.model_dump_json() for layer, figures in layers.items()}
        for layers in (read_quality(tmp_path / "sae").layers, quality.layers)
    )
    assert again == first
    written = pd.read_csv(tmp_path / "sae/curve.csv")
    assert ",".join(written) == "layer,step,tokens,reconstruction,auxk,dead_share"
    assert set(written["layer"]) == {1, 2}


def test_a_run_says_what_it_came_from(tiny_store: FeatureStore) -> None:
    record = run(tiny_store, epochs=1).run.record
    assert (record.store, record.tokens_seen) == (tiny_store.fingerprint, {"1": 256, "2": 64})
    assert record.licences == ("parts: CC0", "tiny weights: CC0")
    assert (record.dataset, record.split, record.images) == ("parts", "test", 16)
    assert "torch" in record.versions


def edit_k(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    config["sae"]["k"] = 3
    (place / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda place: (place / "sae.safetensors").unlink(), "cannot be read"),
        (lambda place: os.truncate(place / "sae.safetensors", 1000), "is damaged"),
        (edit_k, "it does not give its fingerprint"),
    ],
)
def test_what_is_no_whole_run_is_refused(
    tiny_store: FeatureStore, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    trained, quality, curve = run(tiny_store, epochs=1)
    trained.save(tmp_path / "sae", quality, curve)
    damage(tmp_path / "sae")
    with pytest.raises(SpgError, match=message) as error:
        SaeRun.load(tmp_path / "sae")
    assert str(tmp_path / "sae") in str(error.value)


def test_a_loss_that_is_not_finite_stops_at_the_next_point_of_the_curve(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "CONSTANTS", StepConstants(lr=1e30))
    with pytest.raises(SpgError, match=r"Layer 1: the loss is .* after [1-9] steps.*input_norm"):
        run(tiny_store, epochs=50)


def test_k_may_equal_the_dictionary(tiny_store: FeatureStore) -> None:
    assert quality_of(tiny_store, dict_size=4, k=4)["1"].l0 <= 4


def test_progress_reaches_the_end_of_every_layer(tiny_store: FeatureStore) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def note(layer: str, done: int, total: int, loss: float | None) -> None:
        assert layer.endswith("measured") if loss is None else np.isfinite(loss)
        seen[layer] = (done, total)

    for params in (SAE, sae_params(tokens=100)):
        train_sae(tiny_store, params, METHOD, seed=1, callbacks=Callbacks(progress=note))
        assert set(seen) == {"1", "1 measured", "2", "2 measured"}
        assert all(done == total for done, total in seen.values())
    assert seen["1"] == (100, 100)  # the batch that reaches it has more


def test_the_last_step_is_always_on_the_curve_and_checked(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_CURVE_POINTS", 2)
    _, quality, curve = run(tiny_store, epochs=1, batch_images=5)
    last = [line.split(",") for line in curve.splitlines() if line.startswith("1,")][-1]
    assert int(last[2]) == quality.layers["1"].tokens_seen == 256


def test_l2_input_is_used_in_training(tiny_store: FeatureStore) -> None:
    plain, unit = run(tiny_store)[0], run(tiny_store, input_norm="l2")[0]
    assert not plain.layers["1"].encoder.equal(unit.layers["1"].encoder)
