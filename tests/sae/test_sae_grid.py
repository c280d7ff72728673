"""Several SAEs in one pass over the store, and runs that go on after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import METHOD, SAE

from spg_pipe.artefacts import checkpoint
from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import SaeParams
from spg_pipe.sae import fits, ops
from spg_pipe.sae.fits import SaeJob
from spg_pipe.sae.train import SaeResult, train_sae, train_saes
from spg_pipe.sae.trainer import SaeTrainer
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource


def params(**changes: Any) -> SaeParams:
    return SaeParams.model_validate(SAE.model_dump() | {"order_seed": 5} | changes)


GRID = [
    SaeJob(params(dict_size=16, k=2), 1),
    SaeJob(params(dict_size=16, k=4), 1),
    SaeJob(params(dict_size=40, k=3, epochs=1), 1),
    SaeJob(params(dict_size=24, k=3, lr=3e-3), 1),
    SaeJob(params(dict_size=24, k=3, tokens=150), 1),
    SaeJob(params(dict_size=24, k=3, input_norm="center"), 1),
    SaeJob(params(dict_size=24, k=3, activation="jumprelu"), 1),
    SaeJob(params(dict_size=24, k=3), 2),
    SaeJob(params(dict_size=24, k=3), 3),
]


def same(one: SaeResult, other: SaeResult) -> bool:
    weights = all(
        value.equal(other.run.layers[layer].state_dict()[name])
        for layer, sae in one.run.layers.items()
        for name, value in sae.state_dict().items()
    )
    return weights and one[1:] == other[1:] and one.run.config == other.run.config


@pytest.mark.parametrize("dense_entries", [0, 2**22])
def test_a_grid_of_nine_gives_the_bits_of_nine_single_runs(
    tiny_store: FeatureStore, dense_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "DENSE_ENTRIES", dense_entries)
    together = train_saes(tiny_store, GRID, METHOD)
    for job, result in zip(GRID, together, strict=True):
        alone = train_sae(tiny_store, job.params, METHOD, seed=job.seed)
        assert same(result, alone), job


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Layers whose batches were asked for, once for each epoch that was begun."""
    passes: list[str] = []
    true = fits.token_batches

    def counted(source: Any, **options: Any) -> Iterator[torch.Tensor]:
        passes.append(source.layer)
        yield from true(source, **options)

    monkeypatch.setattr(fits, "token_batches", counted)
    return passes


def test_a_grid_reads_each_layer_once_an_epoch(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = count_passes(monkeypatch)
    train_saes(tiny_store, GRID, METHOD)
    assert passes == ["1"] * SAE.epochs + ["2"] * SAE.epochs


def test_jobs_in_another_order_of_batches_take_a_pass_of_their_own(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [SaeJob(params(order_seed=None), 1), SaeJob(params(order_seed=None), 2), GRID[0]]
    passes = count_passes(monkeypatch)
    results = train_saes(tiny_store, jobs, METHOD)
    assert passes.count("1") == 3 * SAE.epochs
    for job, result in zip(jobs, results, strict=True):
        assert same(result, train_sae(tiny_store, job.params, METHOD, seed=job.seed))


def test_the_order_of_the_batches_has_a_seed_of_its_own(tiny_store: FeatureStore) -> None:
    own, fixed, again = (
        train_sae(tiny_store, params(order_seed=order), METHOD, seed=1) for order in (None, 5, 1)
    )
    assert own.curve != fixed.curve
    assert own.curve == again.curve


class KilledError(Exception):
    """Stands for a SIGKILL: nothing of the run is told."""


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Let trainers take so many steps."""
    left = [steps]
    true = SaeTrainer.step

    def step(self: SaeTrainer, *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        return true(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SaeTrainer, "step", step)
        yield


@pytest.mark.parametrize("steps", [1, 5, 7, 13, 21])
@pytest.mark.parametrize("batches", [{}, {"batch_images": None, "batch_tokens": 50}])
@pytest.mark.parametrize("dense_entries", [0, 2**22])
def test_a_killed_run_that_goes_on_has_the_bits_of_an_unbroken_one(
    tiny_store: FeatureStore,
    tmp_path: Path,
    steps: int,
    batches: dict[str, Any],
    dense_entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "DENSE_ENTRIES", dense_entries)
    settings = params(lr_schedule="cosine", lr_warmup=0.1, dead_after_tokens=60, **batches)
    unbroken = train_sae(tiny_store, settings, METHOD, seed=1)
    place = Checkpoints(tmp_path / "checkpoint", seconds=0)
    with killed_after(steps), pytest.raises(KilledError):
        train_sae(tiny_store, settings, METHOD, seed=1, checkpoints=place)
    taken: list[int] = []
    true = SaeTrainer.step
    monkeypatch.setattr(SaeTrainer, "step", lambda *args: (taken.append(1), true(*args))[1])
    resumed = train_sae(tiny_store, settings, METHOD, seed=1, checkpoints=place)
    assert same(resumed, unbroken)
    in_all = sum(values["steps"] for values in unbroken.quality.values())
    # The step that ends a layer leaves no checkpoint, so it may be taken again.
    assert in_all - steps <= len(taken) <= in_all - steps + 1


@pytest.mark.parametrize("protocol", ["default", "spg"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"activation": "batch_topk", "input_norm": "standard"},
        {"activation": "relu", "lr_schedule": "linear"},
        {"activation": "jumprelu", "input_norm": "center"},
        {"prefixes": (8, 16)},
    ],
)
def test_every_kind_of_sae_goes_on_after_a_kill(
    tiny_store: FeatureStore, tmp_path: Path, protocol: str, chosen: dict[str, Any]
) -> None:
    settings = params(dead_after_tokens=60, **chosen)
    method = METHOD.model_copy(update={"protocol": protocol})
    unbroken = train_sae(tiny_store, settings, method, seed=1)
    place = Checkpoints(tmp_path / "checkpoint", seconds=0)
    with killed_after(7), pytest.raises(KilledError):
        train_sae(tiny_store, settings, method, seed=1, checkpoints=place)
    said: list[str] = []
    place.say = said.append
    assert same(train_sae(tiny_store, settings, method, seed=1, checkpoints=place), unbroken)
    assert said[0].startswith("Going on from the checkpoint")


def test_a_killed_grid_goes_on_with_every_saes_own_position(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    unbroken = train_saes(tiny_store, GRID, METHOD)
    place = Checkpoints(tmp_path / "checkpoint", seconds=0)
    with killed_after(60), pytest.raises(KilledError):
        train_saes(tiny_store, GRID, METHOD, checkpoints=place)
    resumed = train_saes(tiny_store, GRID, METHOD, checkpoints=place)
    assert all(same(one, other) for one, other in zip(resumed, unbroken, strict=True))


def test_a_checkpoint_of_another_setting_is_not_gone_on_from(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    said: list[str] = []
    place = Checkpoints(tmp_path / "checkpoint", seconds=0, say=said.append)
    with killed_after(5), pytest.raises(KilledError):
        train_sae(tiny_store, params(), METHOD, seed=1, checkpoints=place)
    other = params(lr=5e-4)
    found = train_sae(tiny_store, other, METHOD, seed=1, checkpoints=place)
    assert "starts anew" in said[0]
    assert same(found, train_sae(tiny_store, other, METHOD, seed=1))


def test_checkpoints_come_at_intervals_only(
    tiny_store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(checkpoint, "save", lambda path, *_: written.append(path))
    place = Checkpoints(tmp_path / "checkpoint", seconds=1e9)
    train_sae(tiny_store, params(), METHOD, seed=1, checkpoints=place)
    assert written == []


def test_an_sae_that_goes_wrong_leaves_the_others_of_its_grid_alone(
    tiny_store: FeatureStore,
) -> None:
    jobs = [SaeJob(params(lr=1e30, epochs=9), 1), GRID[0], GRID[2]]
    broken, *sound = train_saes(tiny_store, jobs, METHOD)
    assert isinstance(broken, SpgError)
    assert "Layer 1: the loss is" in str(broken)
    for job, result in zip(jobs[1:], sound, strict=True):
        assert same(result, train_sae(tiny_store, job.params, METHOD, seed=job.seed))


def test_a_grid_is_measured_in_one_pass(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    true = TokenSource.take

    def counted(self: TokenSource, jobs: Any) -> Any:
        taken.extend(len(job) for job in jobs)
        return true(self, jobs)

    monkeypatch.setattr(TokenSource, "take", counted)
    train_saes(tiny_store, GRID, METHOD)
    images = len(tiny_store)
    assert sum(taken) == 2 * images * (SAE.epochs + 1)  # two layers; the last pass measures
