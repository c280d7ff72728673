"""`choose`: the best settings of an auxiliary set become a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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


def test_the_choice_is_a_recipe_for_its_auxiliary_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        ({"decision.mop.guides": [1]}, {}, "mop is no section"),
        ({"guides.atoms": [0]}, {}, "guides.atoms"),
        ({"guides.atoms": [4]}, {"score": {"rule": "published"}}, "spg-pipe sweep"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(
    axes: dict[str, list[object]], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(SpgError, match=message):
        choose(run_of(axes, **changes), "left")


def test_settings_of_a_bank_are_chosen_after_the_others_and_written_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"), good=4)
    run = run_of({"guides.atoms": [2, 4], "bank.weight": [1.0, 0.0]})
    features.extract(run, run.params.dataset("left"))
    choice = choose(run, "left", normals=2)
    assert list(choice.values) == ["guides.atoms", "bank.weight"]
    recipe = parse_params(yaml.safe_load(choice.path.read_text()), "chosen")
    assert recipe.guides.atoms == choice.values["guides.atoms"]
    assert recipe.bank.weight == choice.values["bank.weight"]
    supervision = {row["supervision"]: "bank.weight" in row for row in choice.rows}
    few_shot = "labelled auxiliary set; few-shot: 2 normal images of the target"
    assert supervision == {"labelled auxiliary set": False, few_shot: True}
    assert few_shot in " ".join(choice.table.split())


def test_too_few_normal_images_leave_the_bank_as_it_is_and_choose_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"))
    run = run_of({"guides.atoms": [2, 4], "bank.weight": [1.0, 0.0]})
    run = replace(run, console=Console(1))
    features.extract(run, run.params.dataset("left"))
    choice = choose(run, "left")
    assert list(choice.values) == ["guides.atoms"]
    assert "Nothing of bank is chosen on left: No part of" in capsys.readouterr().err
    with pytest.raises(SpgError, match="more than 4 normal images"):
        choose(run_of({"bank.weight": [1.0, 0.0]}), "left")


def test_what_is_not_too_few_images_stops_a_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"), good=4)
    run = run_of({"guides.atoms": [2, 4], "bank.neighbours": [1, 1000]})
    features.extract(run, run.params.dataset("left"))
    with pytest.raises(SpgError, match=r"Lower bank\.neighbours"):
        choose(run, "left", normals=2)
    assert not list(Path("artifacts").glob("choices/**/*.*"))
