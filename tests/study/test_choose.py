"""`choose`: the best settings of an auxiliary set become a recipe."""

from __future__ import annotations

import pytest
import yaml
from layouts import write_mvtec
from pipeline.test_parts import RECIPE

from spg_pipe.errors import SpgError
from spg_pipe.pipeline import features
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.study.choose import choose
from spg_pipe.study.held_out import TOLERANCE


def run_of(axes: dict[str, list[object]], **changes: object) -> RecipeRun:
    recipe = RECIPE | {"choose": axes, "seeds": [1, 2]} | changes
    return RecipeRun(parse_params(recipe, "test"), Console(0), "cpu")


def test_the_choice_is_a_recipe_for_its_auxiliary_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mvtec(tmp_path / "left")
    run = run_of({"sae.k": [4, 2], "guides.atoms": [3], "decision.top_share": [0.05, 0.5]})
    features.extract(run, run.params.dataset("left"))
    choice = choose(run, "left")
    means = {
        (row["sae.k"], row["decision.top_share"]): row["merit"]
        for row in choice.rows
        if row["part"] == "mean"
    }
    assert len(means) == 4
    # Dictionaries are described where they are among the choices, of two seeds also how alike.
    for row in choice.rows:
        assert ("stability" in row) == (row["part"] == "mean")
    assert {"R²", "Dead", "Stability"} <= set(choice.table.split())
    taken = choice.values["sae.k"], choice.values["decision.top_share"]
    assert means[taken] >= max(means.values()) - TOLERANCE
    written = parse_params(yaml.safe_load(choice.path.read_text()), "chosen")
    assert written.sae.k == choice.values["sae.k"]
    assert written.guides.atoms == 3
    assert written.decision.top_share == choice.values["decision.top_share"]
    assert (written.auxiliaries, written.choose) == (("left",), {})
    again = choose(run, "left")  # its SAEs are found, not trained anew
    assert again.rows == choice.rows


@pytest.mark.parametrize(
    ("axes", "changes", "message"),
    [
        ({}, {}, "no `choose:` section"),
        (
            {"score.rule": ["published"]},
            {},
            "choose: score.rule: expected one of sae, guides, decision",
        ),
        ({"bank.weight": [1.0]}, {}, "expected one of sae, guides, decision"),
        ({"decision.mop.guides": [1]}, {}, "mop is no section"),
        ({"guides.atoms": [0]}, {}, "guides.atoms"),
        ({"guides.atoms": [4]}, {"score": {"rule": "published"}}, "spg-pipe sweep"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(axes, changes, message):
    with pytest.raises(SpgError, match=message):
        choose(run_of(axes, **changes), "left")
