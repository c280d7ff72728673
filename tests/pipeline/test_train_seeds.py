"""Several settings of a recipe in one pass, as the commands train them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layouts import write_mvtec
from tiny import files

from pipeline.test_checked import RECIPE
from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.errors import SpgError
from spg_pipe.guides.trained.train import Training
from spg_pipe.pipeline import features, training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.sae import train as train_module
from spg_pipe.sae.train import SaeResult
from spg_pipe.sae.trainer import StepConstants


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecipeRun:
    """A run with a store and trained guides."""
    monkeypatch.chdir(tmp_path)
    write_mvtec(tmp_path / "left")
    recipe = RECIPE | {"guides": {"kind": "trained", "epochs": 1}}
    run = RecipeRun(parse_params(recipe, "test"), Console(0), "cpu")
    features.extract(run, run.params.dataset("left"))
    return run


def test_settings_in_one_pass_are_killed_resumed_and_equal_to_single_trainings(run, monkeypatch):
    training.train_sae(run, "left", 1)
    sparse = run.params.guides.model_copy(update={"top_k": 2})
    runs = [run, run.with_params(run.params.model_copy(update={"guides": sparse}))]
    single = [files(training.train_guides(each, "left", 1)) for each in runs]
    assert single[0] != single[1]
    detector = run.paths.detector("left", 1)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", lambda _: True)
        patch.setattr(Training, "end_epoch", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.train_guides_together(runs, "left", [1])
    (checkpoint,) = detector.parent.glob(f".{detector.name}-*.checkpoint")

    steps: list[int] = []
    true = Training.step
    monkeypatch.setattr(Training, "step", lambda self, b: steps.append(1) or true(self, b))
    paths = training.train_guides_together(runs, "left", [1])
    assert steps == []  # the one epoch's steps were done before the kill
    assert [files(path) for path in paths] == single
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"tokens": 792}, r"s8 would be trained for 99 steps.*--set sae\.tokens=800, or more"),
        ({"tokens": None, "epochs": 3}, r"s16 would be .* 48 steps.*--set sae\.epochs=7, or more"),
        (
            {"batch_tokens": None, "batch_images": 4},
            r"s8 would be trained for 10 steps.*sae\.tokens=25600, .*sae\.batch_tokens=1024",
        ),
    ],
)
def test_too_few_steps_are_refused_before_they_are_made(run, monkeypatch, changes, remedy):
    monkeypatch.setattr(training, "train", None)
    params = run.params
    sae = params.sae.model_copy(update=changes)
    with pytest.raises(SpgError, match=remedy):
        training.train_sae(run.with_params(params.model_copy(update={"sae": sae})), "left", 1)


def test_an_sae_that_is_worse_than_the_mean_is_an_error_and_no_artefact(run, monkeypatch):
    true = training.train

    def worse(*arguments: Any, **options: Any) -> SaeResult:
        found = true(*arguments, **options)
        layers = {n: q.model_copy(update={"r2": -0.5}) for n, q in found.quality.layers.items()}
        return found._replace(quality=found.quality.model_copy(update={"layers": layers}))

    monkeypatch.setattr(training, "train", worse)
    with pytest.raises(
        SpgError, match=r"seed 1, is of no use: .* R² of -0\.5 after 300 steps.*larger sae\.tokens"
    ):
        training.train_sae(run, "left", 1)
    assert not run.paths.sae("left", 1).exists()


@pytest.mark.parametrize("fault", [{"steps": 99}, {"r2": -18.0}])
def test_no_guides_are_made_with_an_sae_of_no_use(run, fault):
    path = training.train_sae(run, "left", 1)
    quality = json.loads((path / "quality.json").read_text())
    quality["layers"]["s16"] |= fault
    del quality["seal"]
    (path / "quality.json").write_text(json.dumps(quality))
    with pytest.raises(SpgError, match=r"is of no use: layer s16 .*Run `spg-pipe train-sae`"):
        training.train_guides(run, "left", 1)


def test_a_run_that_went_wrong_leaves_no_checkpoint(run, monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda _: True)
    monkeypatch.setattr(train_module, "CONSTANTS", StepConstants(lr=1e30))
    written: list[Path] = []
    true = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, *args: written.append(self.path) or true(self, *args)
    )
    with pytest.raises(SpgError, match="Layer"):
        training.train_sae(run, "left", 1)
    assert written
    assert not written[0].exists()
