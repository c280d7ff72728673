"""dvc.yaml: no text of a recipe in a command, and the same paths and rows as the code has."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from dvc.fs import LocalFileSystem
from dvc.parsing import DataResolver
from e2e.helpers import ROOT, one_message
from e2e.helpers import run_stage as run_dvc_stage

from spg_pipe.cli.stage import run_stage
from spg_pipe.datasets.manifest import ManifestRecord
from spg_pipe.detector.metrics_file import MetricsRecord
from spg_pipe.detector.record import DetectorRecord, ScoresRecord
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Params, parse_params
from spg_pipe.recipe.paths import Paths, row_of
from spg_pipe.sae.run import SaeQuality, SaeRecord
from spg_pipe.store.format import SCHEMA_VERSION

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
TOUCH = "x; touch P;"


def resolved(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The stages that DVC makes of dvc.yaml and a recipe."""
    (folder / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    repo = SimpleNamespace(fs=LocalFileSystem(), config={})
    return DataResolver(repo, str(folder), PIPELINE).resolve()["stages"]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())


@pytest.mark.parametrize(
    "hostile",
    [
        {"seeds": [f"111; {TOUCH}", "$(touch P)", "`touch P`", "a\nb", "'", True, None, 1.5]},
        {"auxiliaries": [TOUCH, "' ; touch P; '", "x\ntouch P"]},
        {"directions": [{"aux": TOUCH, "target": "$(touch P)"}]},
        {"datasets": [{"name": TOUCH, "root": "; touch P", "split": "|touch P"}]},
        {"demo_sets": {TOUCH: {"root": "r\ntouch P"}}},
        {"synthetic_sets": {"&& touch P": {"root": "r", "source": "a;touch P"}}},
        {"name": TOUCH, "artifacts": TOUCH, "backbone": {"alias": TOUCH, "image_size": TOUCH}},
    ],
)
def test_a_command_is_the_same_whatever_the_recipe_says(tmp_path, demo, hostile) -> None:
    for name, stage in resolved(tmp_path, demo | hostile).items():
        assert stage["cmd"] == f"python stages/{name.partition('@')[0]}.py"


def test_all_stages_depend_on_the_check_of_the_recipe(tmp_path, demo) -> None:
    (check,) = STAGES["recipe"]["outs"]
    made = {"made": {"root": "made", "source": "parts"}}
    for name, stage in resolved(tmp_path, demo | {"synthetic_sets": made}).items():
        read = [Path(dep).stem for dep in stage["deps"] if dep.startswith(f"{check}/")]
        assert bool(read) is (name != "recipe"), name
        assert {*read} <= {*Params.model_fields}
    for name in ("demo_data", "synthesise"):  # a folder that the recipe names is ours to judge
        assert STAGES[name]["do"]["outs"] == [{"${item.root}": {"persist": True}}]


def test_rows_and_paths_are_those_of_the_code(tmp_path, demo) -> None:
    text = yaml.safe_dump(demo | {"seeds": [1, 11]})
    text = text.replace("demo-mvtec", "way0").replace("demo-visa", "a-1")  # as keys of DVC look
    recipe = yaml.safe_load(text) | {"demo_sets": demo["demo_sets"]}
    params = parse_params(recipe, "x")
    paths = Paths(params, 288)
    place = {"prepare": paths.manifest, "extract": paths.store, "train_sae": paths.sae}
    place |= {"train_guides": paths.detector, "score": paths.scores, "evaluate": paths.metrics}
    seen = 0
    for name, stage in resolved(tmp_path, recipe).items():
        row = row_of(params, f"sub/dvc.yaml:{name}") if "@" in name else {}
        if make := place.get(name.partition("@")[0]):
            out = stage["outs"][0]
            assert str(make(*row.values())) in (out if isinstance(out, str) else [*out])
            seen += 1
    assert seen == 2 + 2 + 4 + 4 + 4 + 4


@pytest.mark.parametrize("key", ["way0-1.0", "way9-1", "true", "demo-mvtec-1", ""])
def test_a_row_that_the_recipe_lacks_is_refused(demo, key: str) -> None:
    with pytest.raises(SpgError, match="no row for the stage 'score@"):
        row_of(parse_params(demo | {"seeds": [1]}, "x"), f"score@{key}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"artifacts": "linked/artifacts"}, None),
        ({"seeds": [TOUCH]}, "params.yaml has"),
        ({"artifacts": "../elsewhere"}, "The place of artifacts, ../elsewhere, is outside of"),
        ({"stores": "s3://bucket/x"}, "stores lie in s3://bucket/x, which DVC does not track"),
        ({"stores": "folder"}, "stores: a URL is expected (s3://bucket/stores), or no"),
        ({"demo_sets": {"demo-visa": {"root": "/x"}}}, "The place of demo-visa, /x,"),
        ({"demo_sets": []}, "demo_sets: expected names with settings below, as `parts: {root: …}`"),
    ],
)
def test_the_first_stage_lets_nothing_harmful_pass(
    tmp_path, tmp_path_factory, demo, changed, message
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(demo | changed))
    (tmp_path / "linked").symlink_to(tmp_path_factory.mktemp("another_disk"))
    done = run_dvc_stage("recipe", tmp_path)
    written = {path.stem for path in (tmp_path / "artifacts" / "recipe").glob("*.json")}
    assert written == (set() if message else set(Params.model_fields))
    if message:
        assert message in one_message(done)


def test_the_sections_of_stages_have_defaults_and_formats(tmp_path, demo) -> None:
    """DVC sees neither code nor defaults, so what stages depend on names them."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(demo))
    run_dvc_stage("recipe", tmp_path)
    sae = json.loads((tmp_path / "artifacts" / "recipe" / "sae.json").read_text())
    assert (demo["sae"].get("activation"), sae["sae"]["activation"]) == (None, "topk")
    assert sae["results"] == yaml.safe_load((ROOT / "stages" / "results.yaml").read_text())


def test_results_yaml_names_the_formats_of_the_code() -> None:
    held = yaml.safe_load((ROOT / "stages" / "results.yaml").read_text())
    formats = {
        str(model.model_fields["kind"].default): model.model_fields["format"].default
        for model in (
            ManifestRecord,
            SaeRecord,
            SaeQuality,
            DetectorRecord,
            ScoresRecord,
            MetricsRecord,
        )
    } | {"store": SCHEMA_VERSION}
    assert held["formats"] == formats, "write these into stages/results.yaml"
    assert "stages/results.yaml" in STAGES["recipe"]["deps"]


def main(run: RecipeRun, aux: str, seed: int) -> None:
    """A stage."""
    print(aux, seed, run.params.name)


@pytest.mark.parametrize(
    ("stage", "options", "code", "said"),
    [
        ("train_sae@demo-visa-111", [], 0, "demo-visa 111 demo"),
        ("train_sae@demo-visa-111", ["--aux", "a", "--seed", "7"], 0, "a 7 demo"),
        ("", ["--aux", "a", "--seed", "7"], 0, "a 7 demo"),
        (
            "train_sae@demo-visa-111",
            ["--params", "out.yaml"],
            1,
            "The place of artifacts, ../e, is",
        ),
        ("", [], 2, "required: --aux, --seed"),
    ],
)
def test_a_stage_knows_its_row_from_dvc_or_from_options(
    demo, monkeypatch, capsys, stage, options, code, said
) -> None:
    shutil.copy(ROOT / "recipes" / "demo.yaml", "params.yaml")
    Path("out.yaml").write_text(yaml.safe_dump(demo | {"artifacts": "../e"}))
    monkeypatch.setenv("DVC_STAGE", stage)
    monkeypatch.setattr(sys, "argv", ["train_sae.py", *options])
    with pytest.raises(SystemExit) as stop:
        run_stage(main)
    assert stop.value.code == code
    assert said in "".join(capsys.readouterr())
