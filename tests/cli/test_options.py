"""Options that several commands share: what they change in a recipe, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from e2e.helpers import one_message, spg
from pipeline.test_parts import command

from spg_pipe.cli.options import Options
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import load_params

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


def test_an_override_changes_its_section_and_nothing_else(recipe: Path) -> None:
    run = Options(params=recipe, overrides=["sae.k=3", "sae.epochs=2"], layers="s8, s16").run()
    assert (run.params.sae.k, run.params.sae.epochs) == (3, 2)
    assert run.params.backbone.layers == ("s8", "s16")
    changed = [name for name in ("sae", "backbone", "guides") if run.changes(name)]
    assert changed == ["sae", "backbone"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sea.k=3"], "--set sea.k=3: FILE has no section 'sea' (lists are edited in the file"),
        (["sea.k=3"], "itself); did you mean 'sae'?"),
        (["datasets.0.root=b"], "FILE has no section 'datasets'"),
        (["sweep={sae.k: []}"], "sweep.sae.k: expected at least 1 value; found []"),
        (["sae.k=0"], "the command's options have 1 error:\n  sae.k: "),
        (["sae.k=0", "sae.kk=3"], "the command's options have 2 errors:"),
        ("", "expected names with commas between them"),
        (" ", "expected names with commas between them"),
        ("6,,8", "expected names with commas between them"),
        ("6,", "expected names with commas between them"),
    ],
)
def test_what_set_and_layers_cannot_mean_is_said_in_plain_words(recipe, overrides, message):
    given = {"layers" if isinstance(overrides, str) else "overrides": overrides}
    with pytest.raises(SpgError) as error:
        Options(params=recipe, **given).run()  # type: ignore[arg-type]
    assert message.replace("FILE", str(recipe)) in str(error.value)


@pytest.mark.parametrize("override", ["sae.k", "sae.k=[1"])
def test_options_that_cannot_be_read_are_wrong_usage(recipe: Path, override: str) -> None:
    done = spg("train-sae", "--params", recipe, "--set", override, cwd=recipe.parent)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: --set {override}")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("evaluate", "--scores"),
        ("score", "--detector"),
        ("train-guides", "--sae"),
        ("train-sae", "--store"),
    ],
)
def test_what_is_named_and_does_not_exist_is_said_first(recipe, monkeypatch, capsys, name, option):
    content = RECIPE | {
        "datasets": [{"name": n, "layout": "folder", "root": n} for n in "ab"],
        "directions": [{"aux": "a", "target": "b"}],
        "seeds": [1, 2],
    }
    recipe.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(recipe.parent)
    code, _, err = command(capsys, name, option, "nope", "--params", str(recipe))
    assert (code, err.startswith("Error: nope does not exist.")) == (1, True)


@pytest.mark.parametrize(
    ("recipe_name", "options", "advice"),
    [
        ("demo", [], "Run `dvc repro`."),
        (
            "demo",
            None,
            "Run `spg-pipe extract`, then train-sae, train-guides, score, evaluate and ",
        ),
        ("demo", None, "report; `dvc repro` needs the files that `spg-pipe init` writes."),
        ("demo", ["--params", "my demo.yaml"], "Run `spg-pipe extract --params 'my demo.yaml'`,"),
        ("paper-ablation-guides", [], "Run `spg-pipe sweep`."),
        ("paper-ablation-guides", ["--params", "x.yaml"], "Run `spg-pipe sweep --params x.yaml`."),
    ],
)
def test_a_recipe_in_force_says_the_command_that_it_is_made_for(
    tmp_path, recipe_name, options, advice
):
    data = ["--mvtec", ".", "--visa", "."] if recipe_name != "demo" else []
    if options is not None:  # a clone
        (tmp_path / "dvc.yaml").touch()
    done = spg("recipe", "use", recipe_name, *data, *(options or []), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"is now the recipe {recipe_name}. Run " in done.stderr
    assert advice in done.stderr


def test_a_recipe_whose_sets_are_missing_is_not_put_in_force(tmp_path: Path) -> None:
    (tmp_path / "data" / "mtd").mkdir(parents=True)
    done = spg("recipe", "use", "spg-plus", "--data", "data", cwd=tmp_path)
    assert "needs data/neu_seg, data/crackforest, which are not there" in one_message(done)
    assert not (tmp_path / "params.yaml").exists()


def test_what_is_missing_for_other_settings_names_them(recipe: Path) -> None:
    done = spg("train-sae", "--params", recipe, "--set", "extract.dtype=float32", cwd=recipe.parent)
    message = one_message(done)
    assert "The options ask for other settings than the recipe: there extract.dtype is" in message
    assert "float16, not float32. Its folder, a, is not here. Run `spg-pipe extract" in message
    assert "other settings" not in one_message(
        spg("train-sae", "--params", recipe, cwd=recipe.parent)
    )


def test_a_folder_with_quotes_in_its_name_is_filled_in(tmp_path: Path) -> None:
    (tmp_path / 'a "b": \\ #c').mkdir()
    folder = tmp_path / 'a "b": \\ #c'
    done = spg("recipe", "use", "paper-dinov3", "--mvtec", folder, "--visa", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_params(tmp_path / "params.yaml").datasets[0].root == folder
