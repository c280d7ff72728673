"""The DVC pipeline end to end: the demo's stages, each in a process of its own."""

import json
from pathlib import Path

import pytest

from e2e.helpers import commit, dvc, edit_params, must, pipeline_folder, spg

QUICK = {
    "auxiliaries": ["demo-mvtec"],
    "directions": [{"aux": "demo-mvtec", "target": "demo-visa"}],
    "backbone.image_size": 96,
    "sae": {"dict_size": 64, "k": 4, "epochs": 1},
    "guides.epochs": 1,
}


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One direction of the demo recipe with hardly any training, run once by `dvc repro`."""
    folder = pipeline_folder(tmp_path_factory.mktemp("demo") / "project", git=True)
    must(spg("recipe", "use", "demo", cwd=folder))
    edit_params(folder, QUICK)
    must(dvc("repro", cwd=folder))
    commit(folder)
    return folder


@pytest.mark.slow
def test_repro_makes_every_artefact_and_then_nothing(small_demo: Path) -> None:
    artifacts = small_demo / "artifacts"
    assert len(list(artifacts.glob("metrics/demo/*.json"))) == 1
    assert (artifacts / "report" / "demo" / "index.html").is_file()
    again = must(dvc("repro", cwd=small_demo))
    assert "Running stage" not in again
    assert "up to date" in again


@pytest.mark.slow
def test_dvc_shows_metrics_plots_and_params(small_demo: Path) -> None:
    shown = json.loads(must(dvc("metrics", "show", "--json", cwd=small_demo)))
    (table,) = shown[""]["data"].values()
    assert "pixel_auroc" in table["data"]["mean"]["metrics"]
    must(dvc("plots", "show", cwd=small_demo))
    edit_params(small_demo, {"guides.epochs": 2})
    status = must(dvc("status", cwd=small_demo))
    changed = json.loads(must(dvc("params", "diff", "--json", cwd=small_demo)))
    edit_params(small_demo, {"guides.epochs": 1})
    assert "train_guides" in status
    assert "train_sae" not in status
    assert changed["params.yaml"]["guides.epochs"] == {"old": 1, "new": 2, "diff": 1}


@pytest.mark.slow
def test_an_experiment_changes_a_parameter(small_demo: Path) -> None:
    target = "evaluate@way0-111"
    must(dvc("exp", "run", "-S", "+metrics.accumulator=histogram", target, cwd=small_demo))
    (path,) = (small_demo / "artifacts" / "metrics" / "demo").glob("demo-mvtec--*.json")
    mean = json.loads(path.read_text())["mean"]
    # On maps of so little training the histogram may fall back to sorting, and says so.
    assert mean["accumulator"] in ("histogram", "sort", "histogram+sort")
    assert json.loads(path.read_text())["provenance"]["metrics"]["accumulator"] == "histogram"
