"""The DVC pipeline end to end: the stages of a recipe, each in a process of its own."""

import json
from pathlib import Path

import pytest
from layouts import write_mvtec, write_visa

from e2e.helpers import commit, dvc, edit_params, must, pipeline_folder, spg

QUICK = {
    "demo_sets": {},
    "datasets": [
        {"name": "left", "layout": "mvtec", "root": "left", "split": "test"},
        {"name": "right", "layout": "visa", "root": "right", "split": "test"},
    ],
    "auxiliaries": ["left"],
    "directions": [{"aux": "left", "target": "right"}],
    "backbone.image_size": 64,
    "sae": {"dict_size": 64, "k": 4, "tokens": 1600, "batch_tokens": 16},
    "guides.epochs": 1,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One direction with the demo's settings and hardly any training, run once by `dvc repro`."""
    folder = pipeline_folder(tmp_path_factory.mktemp("dvc") / "project", git=True)
    write_mvtec(folder / "left")
    write_visa(folder / "right", seed=1)
    must(spg("recipe", "use", "demo", cwd=folder))
    edit_params(folder, QUICK)
    must(dvc("repro", cwd=folder))
    commit(folder)
    return folder


@pytest.mark.slow
def test_repro_makes_every_artefact_and_then_nothing(project: Path) -> None:
    artifacts = project / "artifacts"
    assert len(list(artifacts.glob("metrics/demo/*.json"))) == 1
    assert (artifacts / "report" / "demo" / "index.html").is_file()
    again = must(dvc("repro", cwd=project))
    assert "Running stage" not in again
    assert "up to date" in again


@pytest.mark.slow
def test_dvc_shows_metrics_plots_and_params(project: Path) -> None:
    shown = json.loads(must(dvc("metrics", "show", "--json", cwd=project)))
    (table,) = shown[""]["data"].values()
    means = table["data"]["method default, metrics exact"]
    assert "pixel_auroc" in means
    assert all(isinstance(value, float) for value in means.values())
    must(dvc("plots", "show", cwd=project))
    edit_params(project, {"guides.epochs": 2})
    must(dvc("repro", "recipe", cwd=project))
    status = must(dvc("status", cwd=project))
    changed = json.loads(must(dvc("params", "diff", "--json", cwd=project)))
    edit_params(project, {"guides.epochs": 1})
    assert "train_guides" in status
    assert "train_sae" not in status
    assert changed["params.yaml"]["guides.epochs"] == {"old": 1, "new": 2, "diff": 1}


@pytest.mark.slow
def test_an_experiment_changes_a_parameter(project: Path) -> None:
    target = "evaluate@way0-111"
    must(dvc("exp", "run", "-S", "+metrics.accumulator=histogram", target, cwd=project))
    (path,) = (project / "artifacts" / "metrics" / "demo").glob("left--*.json")
    mean = json.loads(path.read_text())["mean"]
    # On maps of so little training the histogram may fall back to sorting, and says so.
    assert mean["accumulator"] in ("histogram", "sort", "histogram+sort")
    assert json.loads(path.read_text())["provenance"]["metrics"]["accumulator"] == "histogram"
