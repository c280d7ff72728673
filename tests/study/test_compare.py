"""`compare`: every method on every direction, and what each was allowed to see."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from layouts import write_mvtec
from pipeline.test_parts import RECIPE

from spg_pipe.artefacts import record
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.pipeline import features, targets
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.costs import Cost
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.study import making, methods
from spg_pipe.study.compare import compare
from spg_pipe.study.costs import MakingCosts
from spg_pipe.study.settings import Result
from study.test_league import in_turn

ZERO_SHOT = {
    "spg-plus": "labelled auxiliary set",
    "SPG as published": "labelled auxiliary set",
    "free dense guides, trained": "labelled auxiliary set",
    "logistic regression": "labelled auxiliary set",
    "intra-image dissimilarity": "nothing",
}


def run_of(**changes: Any) -> RecipeRun:
    return RecipeRun(parse_params(RECIPE | {"seeds": [1, 2]} | changes, "test"), Console(0), "cpu")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("compare")
    write_mvtec(folder / "left")
    write_mvtec(folder / "right", ("bottle",), seed=1, good=3, per_defect=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = run_of()
        for name in ("left", "right"):
            features.extract(run, run.params.dataset(name))
        return folder, compare(run, normals=2)


def costs_file(run: RecipeRun) -> Path:
    return run.paths.comparison.with_name(f"{run.params.name}-costs.json")


def costs_of(file: Path) -> dict[str, Cost]:
    return MakingCosts.load(file).costs


def rows_of(comparison: Result) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in comparison.rows}


def test_every_method_says_what_it_saw(compared):
    sees = {name: row["supervision"] for name, row in rows_of(compared[1]).items()}
    assert {name: sees[name] for name in ZERO_SHOT} == ZERO_SHOT
    others = {name: what for name, what in sees.items() if name not in ZERO_SHOT}
    assert {name: what.partition(":")[0] for name, what in others.items()} == {
        "k-NN bank": "few-shot",
        "Mahalanobis": "few-shot",
        "spg-plus + k-NN bank": "labelled auxiliary set; few-shot",
        "mutual scoring": "transductive",
    }
    assert "2 normal images" in sees["k-NN bank"]
    for name, what in sees.items():
        assert name in compared[1].table
        assert what.split()[0] in compared[1].table


def test_rows_are_means_over_seeds_inside_their_intervals(compared):
    for name, row in rows_of(compared[1]).items():
        for work in ("making", "scoring"):
            assert row[f"{work}_seconds"] > 0, name
            assert 0 <= row[f"{work}_mib"] < 2000, name
        assert (row["auxiliary"], row["dataset"], row["protocol"]) == ("left", "right", "exact")
        seeded = row["seeds"] == "1;2"
        assert np.isnan(row["pixel_auroc_std"]) != seeded, name
        low, high = (row[f"pixel_auroc_{edge}"] for edge in ("low", "high"))
        assert 0 <= low < high <= 1
        if not seeded:  # an interval is of the first seed, which is then the row itself
            assert low - 1e-3 <= row["pixel_auroc"] <= high + 1e-3, name


def test_the_recipes_row_is_what_its_own_stages_give(compared, monkeypatch):
    folder, comparison = compared
    monkeypatch.chdir(folder)
    run = run_of()
    targets.score(run, "right")
    tables = [targets.read_metrics(path).mean.metrics for path in targets.evaluate(run, "right")]
    for metric in ("image_auroc", "pixel_auroc", "pixel_ap"):
        expected = np.mean([table[metric] for table in tables])
        assert rows_of(comparison)["spg-plus"][metric] == pytest.approx(expected, abs=1e-9)


def test_a_second_run_makes_nothing_again_and_still_knows_what_it_cost(
    compared, monkeypatch, capsys
):
    folder, first = compared
    monkeypatch.chdir(folder)
    monkeypatch.setattr("spg_pipe.study.compare.run_jobs", in_turn)  # the first run had processes
    kept = costs_file(run_of())
    dearer = {key: Cost(c.seconds + 1000, c.mebibytes) for key, c in costs_of(kept).items()}
    record.write_record(kept, MakingCosts(costs=dearer))
    again = compare(replace(run_of(seeds=[1]), console=Console(1)), normals=2)
    said = capsys.readouterr().err
    assert "spg-plus, left → right, seed 1" in said
    assert "SAE of" not in said
    assert "guides of" not in said
    for before, after in zip(first.rows, again.rows, strict=True):
        for name in ("method", "supervision", "pixel_auroc_high", "pixel_ap_low"):
            assert before[name] == pytest.approx(after[name], nan_ok=True), before["method"]
    # An SAE and guides; what is loaded is measured anew.
    assert 2000 < rows_of(again)["SPG as published"]["making_seconds"] < 2100


@pytest.mark.parametrize("method", methods.TRAINED)
def test_trained_guides_of_other_inputs_or_settings_are_made_again(method, compared, monkeypatch):
    monkeypatch.chdir(compared[0])
    same, other = run_of(), run_of(method={"detection": "mean_tokens"})
    store, target = (
        checked_store(same, find_dataset(same.params, name)) for name in ("left", "right")
    )
    assert making._is_made(same, store, method, "left", 1)
    assert not making._is_made(other, store, method, "left", 1)
    assert not making._is_made(same, store, method, "left", 3)
    assert not making._is_made(same, target, method, "left", 1)
    monkeypatch.setattr(
        record, "read_file", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no"))
    )
    with pytest.raises(SpgError, match="cannot be read"):  # is not for that made again
        making._is_made(same, store, method, "left", 1)


def test_what_was_made_elsewhere_has_no_making_cost(compared, monkeypatch, tmp_path):
    monkeypatch.chdir(compared[0])
    run, loading = run_of(), Cost(0.5, 800.0)
    origin = Detector.load(run.paths.detector("left", 1)).record.origin
    kept = costs_of(costs_file(run))
    guides, sae = kept[origin.fingerprint], kept[origin.sae.fingerprint]
    whole = Cost(guides.seconds + sae.seconds + 0.5, 800.0)
    assert MakingCosts(costs=kept).of(origin, loading) == whole
    del kept[origin.sae.fingerprint]
    unknown = MakingCosts(costs=kept).of(origin, loading)
    assert np.isnan([unknown.seconds, unknown.mebibytes]).all()
    assert MakingCosts().of(None, loading) == loading
    (tmp_path / "costs.json").write_text("{")
    assert MakingCosts.load(tmp_path / "costs.json").costs == {}


def test_a_method_is_judged_once_on_a_target_if_the_auxiliary_set_does_not_matter(monkeypatch):
    def none(*_args: object) -> None:
        raise UnsuitableError("no train split")

    monkeypatch.setattr(methods, "_normal_images", none)
    category = np.array(["bolt"] * 3)
    one_product = SimpleNamespace(array=lambda _name: category, path="x.zarr", synthetic={})
    names = ("left", "right", "third")
    datasets = [{"name": n, "layout": "mvtec", "root": n, "split": "test"} for n in names]
    ways = [{"aux": "left", "target": "third"}, {"aux": "right", "target": "third"}]
    run = run_of(datasets=datasets, auxiliaries=["left", "right"], directions=ways)
    monkeypatch.setattr(methods, "transductive", lambda _store: "transductive")
    stores: Any = dict.fromkeys(names, one_product)
    found = list(methods.entries(run, stores, 4))
    times = Counter(one.method for one in found)
    assert times["intra-image dissimilarity"] == times["mutual scoring"] == 1
    assert times["logistic regression"] == times["spg-plus"] == 2 * 2  # auxiliaries × seeds
    assert len({one.name for one in found}) == len(found)


STORES = ("left", "right")
FEW_SHOT = {"k-NN bank", "Mahalanobis", "spg-plus + k-NN bank"}


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Who takes part with a recipe's changes, in a folder with both stores, 2 normal images."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(STORES):
        write_mvtec(tmp_path / name, seed=number)

    def entries_of(**changes: Any) -> list[Any]:
        run = replace(run_of(**changes), console=Console(1))
        for name in STORES:
            features.extract(run, run.params.dataset(name), replace=True)
        stores = {name: checked_store(run, find_dataset(run.params, name)) for name in STORES}
        return list(methods.entries(run, stores, 2))

    return entries_of


def few_shot_of(entries: list[Any]) -> list[Any]:
    return [entry for entry in entries if entry.method in FEW_SHOT]


def test_few_shot_methods_take_each_product_by_itself_from_a_train_split(listed, capsys):
    entries = listed()
    assert {entry.method for entry in entries} == {*ZERO_SHOT, *FEW_SHOT}
    for entry in few_shot_of(entries):
        assert "few-shot: 2 normal images of each category" in entry.supervision
    said = " ".join(capsys.readouterr().err.split())
    assert "one product at a time" in said  # no transductive method
    assert "among the normal ones" not in said
    datasets = [dict(dataset) for dataset in RECIPE["datasets"]]
    datasets[1]["split"] = "all"
    assert len(few_shot_of(listed(datasets=datasets))) == len(few_shot_of(entries))
    said = " ".join(capsys.readouterr().err.split())
    assert "Note: 4 of the 12 images are among the normal ones (bottle/train/good/000.png, " in said
    assert "metrics of few-shot methods on right are too good" in said
    for train in Path("right").glob("*/train"):
        shutil.rmtree(train)
    assert {entry.method for entry in listed()} == set(ZERO_SHOT)
    assert "No few-shot methods on right" in capsys.readouterr().err


def test_the_backbone_is_loaded_once_and_what_is_damaged_stops_a_comparison(listed, monkeypatch):
    loaded: list[str] = []
    load = features.load_backbone

    def load_backbone(run: RecipeRun) -> Any:
        loaded.append(run.params.backbone.alias)
        return load(run)

    monkeypatch.setattr(methods, "load_backbone", load_backbone)
    ways = [{"aux": "left", "target": "right"}, {"aux": "right", "target": "left"}]
    both = {"auxiliaries": ["left", "right"], "directions": ways}
    assert {entry.targets for entry in few_shot_of(listed(**both))} == {("left",), ("right",)}
    assert len(loaded) == 1  # two targets of two categories each

    def missing(_run: RecipeRun) -> None:
        raise SpgError("no weights")

    monkeypatch.setattr(methods, "load_backbone", missing)
    with pytest.raises(SpgError, match="no weights"):
        listed()
    for train in Path("right").glob("*/train"):
        shutil.rmtree(train)
    assert not few_shot_of(listed())  # none is needed to say that the split is not there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": []}, "no directions"),
        ({"guides": {"kind": "trained"}}, "found trained and additive"),
        ({"score": {"rule": "published"}}, "found contrast and published"),
        ({"metrics": {"resolution": "original"}}, "metrics.resolution=model"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(changes, message):
    with pytest.raises(SpgError, match=message):
        compare(run_of(**changes))
