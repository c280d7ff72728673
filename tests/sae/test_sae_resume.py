"""Runs that go on after a kill have the bits of unbroken ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import METHOD, sae_params

from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.sae import sparse
from spg_pipe.sae import train as train_module
from spg_pipe.sae.train import SaeResult, train_sae
from spg_pipe.sae.trainer import SaeTrainer, StepConstants
from spg_pipe.store.reader import FeatureStore


@pytest.fixture(autouse=True)
def early_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents die after a few images, so that AuxK takes part."""
    monkeypatch.setattr(train_module, "CONSTANTS", StepConstants(auxk=16, dead_after=60))


def same(first: SaeResult, second: SaeResult) -> bool:
    weights = all(
        value.equal(second.run.layers[layer].state_dict()[name])
        for layer, sae in first.run.layers.items()
        for name, value in sae.state_dict().items()
    )
    return weights and first[1:] == second[1:] and first.run.record == second.run.record


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


OF_TOKENS = {"batch_images": None, "batch_tokens": 50}
BATCH_TOPK = {"activation": "batch_topk", "input_norm": "l2"}


@pytest.mark.parametrize(
    ("steps", "changes", "protocol", "dense_entries"),
    [
        *((steps, {}, "default", 0) for steps in (1, 7, 13, 21)),
        *((steps, OF_TOKENS, "default", 2**22) for steps in (1, 5, 13, 21)),
        (7, {}, "spg", 0),
        (7, BATCH_TOPK, "default", 2**22),
        (7, {"prefixes": (8, 16)}, "spg", 2**22),
    ],
)
def test_a_killed_run_that_goes_on_has_the_bits_of_an_unbroken_one(
    tiny_store: FeatureStore,
    tmp_path: Path,
    steps: int,
    changes: dict[str, Any],
    protocol: str,
    dense_entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", dense_entries)
    settings, method = sae_params(**changes), METHOD.model_copy(update={"protocol": protocol})
    unbroken = train_sae(tiny_store, settings, method, seed=1)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoint", seconds=0, say=said.append)
    with killed_after(steps), pytest.raises(KilledError):
        train_sae(tiny_store, settings, method, seed=1, checkpoints=checkpoints)
    taken: list[int] = []
    true = SaeTrainer.step
    monkeypatch.setattr(SaeTrainer, "step", lambda *args: (taken.append(1), true(*args))[1])
    resumed = train_sae(tiny_store, settings, method, seed=1, checkpoints=checkpoints)
    assert same(resumed, unbroken)
    assert said[0].startswith("Going on from the checkpoint")
    in_all = sum(quality.steps for quality in unbroken.quality.layers.values())
    # The step that ends a layer leaves no checkpoint, so it may be taken again.
    assert in_all - steps <= len(taken) <= in_all - steps + 1


@pytest.mark.parametrize(
    ("changes", "seed", "protocol"),
    [({"k": 3}, 1, "default"), ({}, 2, "default"), ({}, 1, "spg")],
)
def test_a_checkpoint_of_another_run_is_not_gone_on_from(
    tiny_store: FeatureStore, tmp_path: Path, changes: dict[str, Any], seed: int, protocol: str
) -> None:
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoint", seconds=0, say=said.append)
    with killed_after(5), pytest.raises(KilledError):
        train_sae(tiny_store, sae_params(), METHOD, seed=1, checkpoints=checkpoints)
    settings, method = sae_params(**changes), METHOD.model_copy(update={"protocol": protocol})
    result = train_sae(tiny_store, settings, method, seed=seed, checkpoints=checkpoints)
    assert "starts anew" in said[0]
    assert same(result, train_sae(tiny_store, settings, method, seed=seed))
