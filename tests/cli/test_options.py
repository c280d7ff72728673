"""Options that several commands share: what they change in a recipe, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from e2e.helpers import one_message, spg

from spg_pipe.cli.options import Options
from spg_pipe.errors import SpgError

RECIPE = {
    "name": "mine",
    "datasets": [{"name": "a", "layout": "folder", "root": "a"}],
    "auxiliaries": ["a"],
    "directions": [],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def refused(recipe: Path, *overrides: str, layers: str | None = None) -> str:
    with pytest.raises(SpgError) as error:
        Options(params=recipe, overrides=list(overrides), layers=layers).run()
    return str(error.value)


def test_an_override_changes_its_section_and_nothing_else(recipe: Path) -> None:
    run = Options(params=recipe, overrides=["sae.k=3", "sae.epochs=2"], layers="s8, s16").run()
    assert (run.params.sae.k, run.params.sae.epochs) == (3, 2)
    assert run.params.backbone.layers == ("s8", "s16")
    assert [name for name in ("sae", "backbone", "guides") if run.changes(name)] == [
        "sae",
        "backbone",
    ]


def test_an_unknown_section_names_the_file_in_use_and_the_nearest_section(recipe: Path) -> None:
    message = refused(recipe, "sea.k=3")
    said = f"--set sea.k=3: {recipe} has no section 'sea' (lists are edited in the file itself)"
    assert message == f"{said}; did you mean 'sae'?"


def test_a_sweep_without_values_is_refused_in_plain_words(recipe: Path) -> None:
    message = refused(recipe, "sweep={sae.k: []}")
    assert "sweep.sae.k: expected at least 1 value; found []" in message


def test_a_list_cannot_be_reached_by_set(recipe: Path) -> None:
    assert f"{recipe} has no section 'datasets'" in refused(recipe, "datasets.0.root=b")


def test_faults_of_options_are_counted_as_theirs(recipe: Path) -> None:
    assert refused(recipe, "sae.k=0").startswith("the command's options have 1 error:\n  sae.k: ")
    assert refused(recipe, "sae.k=0", "sae.kk=3").startswith("the command's options have 2 errors:")


@pytest.mark.parametrize("layers", ["", " ", "6,,8", "6,"])
def test_layers_without_a_name_are_refused(recipe: Path, layers: str) -> None:
    assert "expected names with commas between them" in refused(recipe, layers=layers)


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "sae.k"],
        ["--set", "sae.k=[1"],
    ],
)
def test_options_that_cannot_be_read_are_wrong_usage(recipe: Path, options: list[str]) -> None:
    done = spg("train-sae", "--params", recipe, *options, cwd=recipe.parent)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {options[-2]} {options[-1]}")


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--scores", "nope"],
        ["score", "--detector", "nope"],
        ["train-guides", "--sae", "nope"],
        ["train-sae", "--store", "nope"],
    ],
)
def test_what_is_named_and_does_not_exist_is_said_first(recipe: Path, command: list[str]) -> None:
    content = RECIPE | {
        "datasets": [{"name": n, "layout": "folder", "root": n} for n in "ab"],
        "directions": [{"aux": "a", "target": "b"}],
        "seeds": [1, 2],
    }
    recipe.write_text(yaml.safe_dump(content))
    done = spg(*command, "--params", recipe, cwd=recipe.parent)
    assert one_message(done).startswith("Error: nope does not exist.")


@pytest.mark.parametrize(
    ("recipe_name", "options", "advice"),
    [
        ("demo", [], "Run `dvc repro`."),
        ("demo", ["--params", "my demo.yaml"], "Run `spg-pipe extract --params 'my demo.yaml'`,"),
        ("paper-ablation-guides", [], "Run `spg-pipe sweep`."),
        ("paper-ablation-guides", ["--params", "x.yaml"], "Run `spg-pipe sweep --params x.yaml`."),
    ],
)
def test_a_recipe_in_force_says_the_command_that_it_is_made_for(
    tmp_path: Path, recipe_name: str, options: list[str], advice: str
) -> None:
    data = ["--mvtec", ".", "--visa", "."] if recipe_name != "demo" else []
    done = spg("recipe", "use", recipe_name, *data, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"is now the recipe {recipe_name}. {advice}" in done.stderr


def test_a_recipe_whose_sets_are_missing_is_not_put_in_force(tmp_path: Path) -> None:
    (tmp_path / "data" / "mtd").mkdir(parents=True)
    done = spg("recipe", "use", "spg-plus", "--data", "data", cwd=tmp_path)
    assert "needs data/neu_seg, data/crackforest, which are not there" in one_message(done)
    assert not (tmp_path / "params.yaml").exists()
