"""Several runs in one pass over the store, and runs that are killed and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import GUIDES, METHOD, SAE

from spg_pipe.artefacts.checkpoint import Checkpoints, checkpoint_path
from spg_pipe.errors import SpgError
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.guides.trained import train as train_module
from spg_pipe.guides.trained.train import GuideFit, GuideRun, fit_guides, run_fingerprint
from spg_pipe.guides.trained.trainer import Constants
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource


def params(**changes: Any) -> TrainedGuides:
    return GUIDES.model_copy(update={"order_seed": 111} | changes)


def run_of(saes: SaeRun, seed: int, guides: TrainedGuides, **constants: Any) -> GuideRun:
    return GuideRun(saes, guides, seed, Constants(**{"batch_images": 4} | constants))


@pytest.fixture(scope="module")
def runs(tiny_store: FeatureStore, tiny_sae: SaeRun) -> list[GuideRun]:
    other = train_sae(tiny_store, SAE.model_copy(update={"epochs": 1}), METHOD, seed=2)[0]
    return [
        run_of(tiny_sae, 111, params()),
        run_of(other, 2, params()),
        run_of(tiny_sae, 111, params(), lr=0.003),
        run_of(tiny_sae, 7, params(top_k=3)),
        run_of(tiny_sae, 7, params(), sparsity=0.0, ema_decay=0.5),
    ]


@pytest.fixture(scope="module")
def together(tiny_store: FeatureStore, runs: list[GuideRun]) -> list[GuideFit]:
    return fit_guides(tiny_store, runs, METHOD)


def assert_same(one: GuideFit, other: GuideFit) -> None:
    """To the last bit: codes, averages, Adam's state and curves."""
    assert one.curve == other.curve
    for layer, trainer in one.trainers.items():
        twin = other.trainers[layer]
        assert trainer.codes.equal(twin.codes)
        assert trainer.ema.equal(twin.ema)
        states = [t.optimizer.state[t.codes] for t in (trainer, twin)]
        for name, value in states[0].items():
            assert value.equal(states[1][name])


def test_runs_trained_together_are_to_the_bit_what_each_is_alone(
    tiny_store: FeatureStore, runs: list[GuideRun], together: list[GuideFit]
) -> None:
    for run, fit in zip(runs, together, strict=True):
        assert_same(fit, fit_guides(tiny_store, [run], METHOD)[0])
    codes = [fit.trainers["1"].ema for fit in together]
    assert not any(codes[0].equal(other) for other in codes[1:])


def test_runs_trained_together_read_the_store_once(
    tiny_store: FeatureStore, runs: list[GuideRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    true = TokenSource.take

    def spy(source: TokenSource, jobs: Any) -> Any:
        taken.extend(len(job) for job in jobs)
        return true(source, jobs)

    monkeypatch.setattr(TokenSource, "take", spy)
    counts = []
    for some in (runs[:1], runs):
        taken.clear()
        fit_guides(tiny_store, some, METHOD)
        counts.append(sum(taken))
    assert counts == [3 * 14 * 2] * 2  # epochs × images × layers


def test_runs_with_other_batches_are_refused(tiny_store: FeatureStore, tiny_sae: SaeRun) -> None:
    some = [run_of(tiny_sae, 1, params(epochs=n)) for n in (1, 2)]
    with pytest.raises(SpgError, match=r"same order of images.*\(111, 1, 4\), \(111, 2, 4\)"):
        fit_guides(tiny_store, some, METHOD)


class KilledError(Exception):
    """Stands for a kill between two steps."""


def killed_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many batches come, then stop."""
    true, left = train_module.image_batches, [batches]

    def stopping(*args: Any, **kwargs: Any) -> Any:
        for batch in true(*args, **kwargs):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            yield batch

    monkeypatch.setattr(train_module, "image_batches", stopping)


@pytest.mark.parametrize(
    ("protocol", "batches"), [*(("default", n) for n in (1, 3, 4, 6, 11)), ("spg", 6)]
)
def test_a_killed_training_resumes_to_the_same_bits(
    tiny_store: FeatureStore,
    runs: list[GuideRun],
    together: list[GuideFit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    batches: int,
) -> None:
    method, some, whole = METHOD.model_copy(update={"protocol": protocol}), runs, together
    if protocol == "spg":  # its moving average has no warm-up, and hard codes have no L1
        some = [runs[0], replace(runs[0], guides=params(top_k=4))]
        whole = fit_guides(tiny_store, some, method)
    places = Checkpoints(checkpoint_path(tmp_path / "detector"), seconds=0)
    with monkeypatch.context() as patch:
        killed_after(batches, patch)  # four an epoch
        with pytest.raises(KilledError):
            fit_guides(tiny_store, some, method, checkpoints=places)
    assert places.path.exists()
    seen: list[int] = []
    fits = fit_guides(
        tiny_store, some, method, checkpoints=places, progress=lambda done, *_: seen.append(done)
    )
    assert len(seen) == 12 - batches
    assert seen[-1] == 3 * 14
    for fit, expected in zip(fits, whole, strict=True):
        assert_same(fit, expected)


@pytest.mark.parametrize("spoil", [None, "other settings", "damage"])
def test_a_finished_training_is_not_repeated_and_a_checkpoint_of_no_use_is_ignored(
    tiny_store: FeatureStore,
    runs: list[GuideRun],
    together: list[GuideFit],
    tmp_path: Path,
    spoil: str | None,
) -> None:
    said: list[str] = []
    seen: list[int] = []
    places = Checkpoints(checkpoint_path(tmp_path / "detector"), seconds=0, say=said.append)
    fit_guides(tiny_store, runs[1:3], METHOD, checkpoints=places)
    assert said == []
    if spoil == "damage":
        content = bytearray(places.path.read_bytes())
        content[-20] ^= 1
        places.path.write_bytes(content)
    chosen = slice(0, 1) if spoil == "other settings" else slice(1, 3)
    fits = fit_guides(
        tiny_store,
        runs[chosen],
        METHOD,
        checkpoints=places,
        progress=lambda done, *_: seen.append(done),
    )
    assert ("training starts anew" if spoil else "Going on from the checkpoint") in said[0]
    assert len(seen) == (12 if spoil else 0)
    for fit, whole in zip(fits, together[chosen], strict=True):
        assert_same(fit, whole)


def test_the_fingerprint_of_a_training_holds_what_determines_it(
    tiny_store: FeatureStore, runs: list[GuideRun]
) -> None:
    spg = METHOD.model_copy(update={"protocol": "spg"})
    seen = {
        run_fingerprint(tiny_store, some, method)
        for some in ([runs[0]], [runs[1]], runs[:2], [run_of(runs[0].saes, 111, params(), lr=1)])
        for method in (METHOD, spg)
    }
    assert len(seen) == 8


def test_five_steps_are_those_of_the_literal_recipe() -> None:
    from benchmarks.guide_step import difference

    torch.manual_seed(0)
    assert max(difference(dim=64, dict_size=128, side=6, size=96, images=4)) < 2e-6
