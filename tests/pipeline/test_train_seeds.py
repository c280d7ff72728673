"""All seeds and settings of a recipe in one pass, as the commands train them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from e2e.helpers import must, spg
from layouts import write_mvtec
from tiny import files

from pipeline.test_find import RECIPE
from spg_pipe import pipeline
from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.guides.trained.progress import Training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params


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


def test_a_grid_names_what_sets_each_sae_apart(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "left")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    for command in (["extract", "--split", "left"], ["train-sae", "--seed", "1"]):
        must(spg(*command, "--params", recipe, cwd=tmp_path))
    grid = ["--grid", "sae.k=2,3", "--grid", "sae.lr=0.001,0.01", "--params", recipe]
    said = spg("train-sae", *grid, "--aux", "left", "--seed", "1", cwd=tmp_path).stderr
    assert [line for line in said.splitlines() if line.startswith("SAE ") and " of 4" in line] == [
        "SAE 1 of 4: sae.k = 2, sae.lr = 0.001, seed 1",
        "SAE 2 of 4: sae.k = 2, sae.lr = 0.01, seed 1",
        "SAE 3 of 4: sae.k = 3, sae.lr = 0.001, seed 1",
        "SAE 4 of 4: sae.k = 3, sae.lr = 0.01, seed 1",
    ]
    found = json.loads(must(spg("train-sae", *grid, "--json", cwd=tmp_path)))
    assert [one["sae"] for one in found["settings"]] == found["saes"]
    for one in found["settings"]:
        params = json.loads((tmp_path / one["sae"] / "config.json").read_text())["sae"]
        assert (one["sae.k"], one["sae.lr"]) == (params["k"], params["lr"])
        assert (one["aux"], one["seed"]) == ("left", 111)
