"""`atlas --audit`: claims about atoms, and the controls beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from layouts import write_mvtec
from pipeline.test_parts import RECIPE
from typer.testing import CliRunner

from spg_pipe.cli.main import app
from spg_pipe.decision.components import Sides
from spg_pipe.detector.coarse import FIGURES
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.pipeline import features, training
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.study import audit as module
from spg_pipe.study.audit import audit, keep_rows, kept_path, kept_rows, remove_kept
from spg_pipe.study.audit_dictionaries import DICTIONARIES, OWN
from spg_pipe.study.audit_tables import CONTRAST, WHOLE, Row, atoms_needed
from spg_pipe.study.league import judge_target
from spg_pipe.study.methods import stores_of
from spg_pipe.study.runner import Job
from spg_pipe.study.settings import Result
from study.test_league import in_turn

NAMES = ("left", "right")


def run_of(**changes: Any) -> RecipeRun:
    recipe = RECIPE | {
        "datasets": [{"name": name, "layout": "mvtec", "root": name} for name in NAMES],
        "directions": [{"aux": "left", "target": "right"}],
        "guides": {"atoms": 5},
        "seeds": [1, 2],
    }
    return RecipeRun(parse_params(recipe | changes, "test"), Console(0), "cpu")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder with an audit, and what the audit gave."""
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(module, "run_jobs", in_turn)
        run = run_of()
        backbone = features.load_backbone(run)
        for seed, name in enumerate(NAMES):
            write_mvtec(folder / name, ("bottle",), seed=seed, per_defect=3)
            features.extract(run, run.params.dataset(name), backbone=backbone)
        for seed in run.params.seeds:
            training.train_sae(run, "left", seed)
        training.train_guides_together([run], "left", run.params.seeds)
        return folder, audit(run)


def values(result: Result, **wanted: Any) -> list[float]:
    """Of the rows with these values."""
    return [float(row["value"]) for row in result.rows if wanted.items() <= row.items()]


@pytest.mark.parametrize("alone", [True, False])
def test_all_atoms_give_what_the_decision_gives(held, monkeypatch, alone):
    folder, result = held
    monkeypatch.chdir(folder)
    run = run_of()
    detector = Detector.load(run.paths.detector("left", 1))
    decision, claim = detector.decision, f"{CONTRAST}, {WHOLE}"
    if alone:
        weights = decision.map_weights.model_copy(update={"self_distance": 0})
        terms = {n: t for n, t in decision.terms.items() if n != "self_distance"}
        changes, claim = {"map_weights": weights, "terms": terms}, CONTRAST
        decision = decision.model_copy(update=changes)
    sides = {
        name: Sides(guides.directions(as_cosines=False), guides.basis)
        for name, guides in detector.layers.items()
    }
    store = checked_store(run, find_dataset(run.params, "right"))
    expected = judge_target(store, sides, [decision], "cpu")[0, :3]
    whole = {"claim": claim, "seed": 1, "dictionary": OWN, "n": 5}
    for variant in ("kept", "made of"):
        found = [values(result, **whole, variant=variant, figure=name)[0] for name in FIGURES]
        assert found == pytest.approx(expected, abs=2e-3)


def test_every_dictionary_is_matched_with_as_many_atoms(held):
    _, result = held
    for name in DICTIONARIES:
        rows = [row for row in result.rows if row["dictionary"] == name]
        assert {row["n"] for row in rows if row["variant"] == "made of"} == {1, 2, 4, 5}
        seeds = {1, 2} if name in DICTIONARIES[:3] else {1}
        assert {row["seed"] for row in rows} == seeds


def test_the_table_names_its_backbone_protocol_and_seeds(held):
    folder, result = held
    text = " ".join(result.table.split())
    assert "efficientnet-lite0; method protocol default; protocol exact, maps at a" in text
    assert "seeds 1, 2." in text
    header = (folder / result.path).read_text().splitlines()[0]
    assert header.startswith("claim,auxiliary,target,seed,dictionary,variant,n,figure,value")
    assert header.endswith("backbone,method_protocol,protocol")


@pytest.mark.parametrize(
    ("figures", "needed"),
    [
        ({1: 0.7, 2: 0.9, 4: 0.895, 8: 0.9}, 2),
        ({1: 0.9, 2: 0.7, 4: 0.9}, 4),  # what one atom had, two lose again
        ({1: 0.95, 2: 0.9}, 1),
    ],
)
def test_atoms_needed_are_those_from_which_on_little_is_lost(figures, needed):
    assert atoms_needed(pd.Series(figures), 0.9) == needed
    assert math.isnan(atoms_needed(pd.Series(figures), 1.0))


def test_an_interrupted_audit_goes_on_from_its_finished_jobs(held, monkeypatch):
    folder, result = held
    monkeypatch.chdir(folder)
    run, done = run_of(), list[str]()
    finished = run.paths.audit.with_suffix(".finished")
    assert not finished.exists()

    def until(count: int) -> Any:
        def run_some(jobs: Sequence[Job], device: str) -> Iterator[tuple[str, Any]]:
            for job in jobs:
                if len(done) == count:
                    raise SpgError("the job failed")
                done.append(job.name)
                yield job.name, job.work()

        return run_some

    monkeypatch.setattr(module, "run_jobs", until(1))
    with pytest.raises(SpgError, match="the job failed"):
        audit(run)
    monkeypatch.setattr(module, "run_jobs", until(2))
    again = audit(run)
    assert done == ["audit of left, seed 1", "audit of left, seed 2"]
    assert (again.table, str(again.rows)) == (result.table, str(result.rows))  # some are NaN
    assert not finished.exists()


def test_rows_are_kept_for_the_same_inputs_alone(held, monkeypatch):
    folder, _ = held
    monkeypatch.chdir(folder)
    stores, rows = (
        stores_of(run_of()),
        [Row("ap", "left", "right", 1, OWN, "kept", 5, "", math.nan)],
    )
    path = kept_path(run_of(), stores, "left", 1)
    keep_rows(path, rows)
    assert str(kept_rows(kept_path(run_of(), stores, "left", 1))) == str(rows)
    others = [(run_of(), 2), (run_of(seeds=[1]), 1)]
    assert [kept_rows(kept_path(run, stores, "left", seed)) for run, seed in others] == [None, None]
    path.write_text(path.read_text()[:-9])
    assert kept_rows(path) is None
    remove_kept([path])
    assert not path.parent.exists()


def test_tiles_are_refused_before_any_job(held, monkeypatch):
    folder, _ = held
    monkeypatch.chdir(folder)
    tiled = SimpleNamespace(spec=SimpleNamespace(backbone=SimpleNamespace(tiles=object())))
    monkeypatch.setattr(module, "stores_of", lambda run: {"right": tiled})
    with pytest.raises(SpgError, match="audit judges images as a whole; the store of right has"):
        audit(run_of())


def test_an_audit_without_directions_is_refused_before_any_work():
    with pytest.raises(SpgError, match="An audit needs `directions:`"):
        audit(run_of(directions=[]))


def test_the_command_refuses_what_an_audit_is_not_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(RECIPE))
    result = CliRunner().invoke(app, ["atlas", "--audit", "--all"])
    assert isinstance(result.exception, SpgError)
    assert "--all is not for it" in str(result.exception)
