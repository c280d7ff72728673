"""`spg-pipe sweep`: every combination of settings, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from e2e.helpers import spg
from layouts import write_mvtec, write_visa
from pipeline.test_checked import RECIPE

from spg_pipe.errors import SpgError
from spg_pipe.pipeline import features, targets, training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.study import settings
from spg_pipe.study import sweep as module
from spg_pipe.study.sweep import settings_of, sweep

SWEEP = {"sae.k": [2, 4], "guides.top_k": [None, 8], "score.image_score": ["max", "cls"]}


PUBLISHED: dict[str, Any] = {
    **RECIPE,
    "guides": {**RECIPE["guides"], "kind": "trained"},
    "score": {"rule": "published"},
}


def run_of(recipe: dict[str, Any]) -> RecipeRun:
    return RecipeRun(parse_params(PUBLISHED | recipe, "test"), Console(0), "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    write_mvtec(root / "left")
    write_visa(root / "right", seed=1)
    return root


def test_a_sweep_equals_its_settings_one_by_one(folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = sweep(run_of({"sweep": SWEEP, "seeds": [1, 2]}))
    rows = {tuple(row[key] for key in SWEEP): row for row in result.rows}
    assert len(rows) == len(result.rows) == 8
    values = {"sae": {**RECIPE["sae"], "k": 2}, "guides": {**PUBLISHED["guides"], "top_k": 8}}
    score = {"rule": "published", "image_score": "cls"}
    alone = run_of({**values, "score": score, "name": "alone", "seeds": [1, 2]})
    for seed in (1, 2):
        training.train_sae(alone, "left", seed)
    training.train_guides_together([alone], "left", [1, 2])
    targets.score(alone, "right")
    tables = [targets.read_metrics(path).mean.metrics for path in targets.evaluate(alone, "right")]
    row = rows[2, 8, "cls"]
    for name in ("image_auroc", "pixel_auroc", "pixel_ap"):
        assert row[name] == pytest.approx(sum(t[name] for t in tables) / 2, nan_ok=True)
    assert "2, 8, cls" in result.table
    assert result.path.read_text().startswith("sae.k,guides.top_k,score.image_score,")


def test_a_second_sweep_makes_nothing_again_but_damaged_scores(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = run_of({"name": "mended", "sweep": {"sae.k": [2, 4]}, "seeds": [1]})
    first = sweep(run)

    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(settings, "train_sae", never)
    monkeypatch.setattr(features, "extract", never)
    monkeypatch.setattr(module, "train_guides_together", never)
    with monkeypatch.context() as patch:
        patch.setattr(module, "score", never)
        assert sweep(run).table == first.table
    for path in Path("artifacts/scores/mended").iterdir():
        chunk = next(path.glob("maps.zarr/*/c/0/0/0"))
        chunk.write_bytes(chunk.read_bytes()[:50])
    assert sweep(run).table == first.table


ABLATION = {"decision.image.detection": [0.0, 1.0], "decision.map.guides": [0.0], "sae.k": [2]}


def test_one_at_a_time_changes_a_single_value_and_leaves_out_the_recipes_own():
    recipe = RECIPE | {"sweep": ABLATION}
    run = RecipeRun(parse_params(recipe, "test"), Console(0), "cpu")
    assert run.params.decision.image.detection == 1.0
    found = settings_of(run, one_at_a_time=True)
    assert [one.name for one in found] == [
        "the recipe as it is",
        "decision.image.detection = 0.0",
        "decision.map.guides = 0.0",
        "sae.k = 2",
    ]
    assert found[0].run is run
    for one in found[1:]:
        ((place, value),) = one.values.items()
        content = run.params.model_dump(mode="json")
        *sections, key = place.split(".")
        target = content
        for name in sections:
            target = target[name]
        assert target[key] != value
        target[key] = value
        assert one.run.params == parse_params(content, "test")


def test_an_ablation_is_the_recipe_and_its_variants_in_one_table(folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = RECIPE | {"name": "ablated", "seeds": [1], "sweep": ABLATION}
    run = RecipeRun(parse_params(recipe, "test"), Console(0), "cpu")
    rows = {row["setting"]: row for row in sweep(run, one_at_a_time=True).rows}
    assert len(rows) == 4
    targets.score(run, "right")
    table = targets.read_metrics(targets.evaluate(run, "right")[0])
    assert rows["the recipe as it is"]["pixel_ap"] == pytest.approx(table.mean.metrics["pixel_ap"])
    assert len({row["pixel_auroc"] for row in rows.values()}) > 1
    assert not any("sae.k" in row for row in rows.values())


@pytest.mark.parametrize(
    ("axes", "fault"),
    [
        ({}, "no `sweep:` section"),
        ({"seeds": [1, 2]}, "expected one of backbone"),
        ({"sae": [3]}, "sae: Input should be a valid dictionary"),
        ({"sae.kk": [3]}, "sae.kk: unknown parameter; did you mean 'k'"),
        ({"sae.k": [64]}, "k = 64 is larger than dict_size"),
        ({"sae": [{"k": 8}], "sae.k": [4]}, "sae and sae.k both set it"),
    ],
)
def test_a_sweep_that_makes_no_sense_says_why(axes, fault):
    with pytest.raises(SpgError, match=fault):
        settings_of(run_of({"sweep": axes}))


def test_whole_sections_may_vary():
    aliases = ["dinov3", "openclip"]
    settings = settings_of(run_of({"sweep": {"backbone": [{"alias": a} for a in aliases]}}))
    assert [one.run.params.backbone.alias for one in settings] == aliases


def test_the_command_prints_the_table_and_takes_a_sweep_as_an_option(folder):
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    options = ("sweep", "--params", "recipe.json", "--set")
    done = spg(*options, "sweep={sae.k: [2, 4]}", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [row["sae.k"] for row in json.loads(done.stdout)["rows"]] == [2, 4]
    alone = spg(*options, "sweep.sae.k=[2]", "--one-at-a-time", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    assert "the recipe as it is" in alone.stdout
    assert "sae.k = 2" in alone.stdout
    bare = spg(*options, "sweep.sae.k=2", cwd=folder)
    assert "sweep.sae.k: expected a list, for instance [2]; found 2" in bare.stderr


def test_both_metric_protocols_fit_in_one_table(folder, monkeypatch):
    monkeypatch.chdir(folder)
    recipe = {"name": "both", "sweep": {"metrics.protocol": ["exact", "spg"]}, "seeds": [1]}
    table = sweep(run_of(recipe)).table
    assert "metrics protocol exact and spg" in " ".join(table.split())
    assert "AUPRO@0.3" in table
    assert sum(line.startswith("spg ") for line in table.splitlines()) == 1
