"""All seeds and settings of a recipe in one pass, as the commands train them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from layouts import write_mvtec
from tiny import files

from pipeline.test_checked import RECIPE
from spg_pipe import pipeline
from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.errors import SpgError
from spg_pipe.guides.trained.progress import Training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.sae import train as train_module
from spg_pipe.sae.trainer import StepConstants


def test_seeds_in_one_pass_are_killed_resumed_and_equal_to_single_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(tmp_path / "left")
    recipe = RECIPE | {"seeds": [1, 2]}
    recipe["guides"] = {**recipe["guides"], "kind": "trained"}
    run = RecipeRun(parse_params(recipe, "test"), Console(0), "cpu")
    pipeline.extract(run, run.params.dataset("left"))
    for seed in (1, 2):
        pipeline.train_sae(run, "left", seed)
    train = partial(pipeline.train_guides_together, [run], "left", order_seed=5)
    single = [files(train([seed])[0]) for seed in (1, 2)]
    folder = run.paths.detector("left", 1).parent

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", lambda _: True)
        patch.setattr(Training, "end_epoch", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train([1, 2])
    name = run.paths.detector("left", 1).name
    (checkpoint,) = folder.glob(f".{name}-*.checkpoint")

    steps: list[int] = []
    true = Training.step
    monkeypatch.setattr(Training, "step", lambda self, b: steps.append(1) or true(self, b))
    paths = train([1, 2])
    assert steps == []  # the one epoch's steps were done before the kill
    assert [files(path) for path in paths] == single
    assert not checkpoint.exists()


def test_a_run_that_went_wrong_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(tmp_path / "left")
    run = RecipeRun(parse_params(RECIPE, "test"), Console(0), "cpu")
    pipeline.extract(run, run.params.dataset("left"))
    monkeypatch.setattr(Checkpoints, "due", lambda _: True)
    monkeypatch.setattr(train_module, "CONSTANTS", StepConstants(lr=1e30))
    written: list[Path] = []
    true = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, *args: written.append(self.path) or true(self, *args)
    )
    with pytest.raises(SpgError, match="Layer"):
        pipeline.train_sae(run, "left", 1)
    assert written
    assert not written[0].exists()
