"""`league`: candidates on all directions, and what would be chosen without each target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import write_mvtec
from pipeline.test_parts import RECIPE

from spg_pipe.errors import SpgError
from spg_pipe.pipeline import features, targets, training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Direction, parse_params
from spg_pipe.report.tables import plain
from spg_pipe.study import league as module
from spg_pipe.study.choose import choose
from spg_pipe.study.league import league, over_ways
from spg_pipe.study.methods import PUBLISHED, UNLIKE
from spg_pipe.study.settings import Result, combinations
from spg_pipe.study.standings import (
    CHOSEN,
    IN_SIGHT,
    LEFT_OUT,
    Standings,
    left_out,
    merits,
    worst_gains,
)

NAMES = ("left", "right", "third")
WAYS = tuple(Direction(aux="left", target=name) for name in NAMES[1:])
AXES: dict[str, list[Any]] = {"guides.atoms": [3, 5], "decision.map.self_distance": [0.25, 0.0]}


def run_of(**changes: Any) -> RecipeRun:
    recipe = RECIPE | {
        "datasets": [{"name": name, "layout": "mvtec", "root": name} for name in NAMES],
        "directions": [way.model_dump() for way in WAYS],
        "guides": {"atoms": 3},
        "choose": AXES,
        "seeds": [1, 2],
    }
    return RecipeRun(parse_params(recipe | changes, "test"), Console(0), "cpu")


def in_turn(jobs: list[Any], _device: str) -> Any:
    """`run_jobs` in this process: what a job needs is listed before it."""
    return ((job.name, job.work()) for job in jobs)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder in which `choose` and the league have run, and what the league gave."""
    folder = tmp_path_factory.mktemp("league")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(module, "run_jobs", in_turn)
        run = run_of()
        backbone = features.load_backbone(run)
        for seed, name in enumerate(NAMES):
            write_mvtec(folder / name, ("bottle",), seed=seed, per_defect=3)
            features.extract(run, run.params.dataset(name), backbone=backbone)
        choose(run, "left")
        return folder, league(run)


def row_of(result: Result, target: str, **wanted: Any) -> dict[str, Any]:
    """The only row of a target with these values."""
    wanted["target"] = target
    (row,) = [dict(row) for row in result.rows if wanted.items() <= row.items()]
    return row


def test_the_recipes_own_candidate_is_what_its_stages_give(held, monkeypatch):
    folder, result = held
    monkeypatch.chdir(folder)
    run = run_of()
    training.train_guides_together([run], "left", run.params.seeds)
    targets.score(run, "right")
    tables = [targets.read_metrics(path).mean.metrics for path in targets.evaluate(run, "right")]
    own = {"guides.atoms": 3, "decision.map.self_distance": 0.25}
    row = row_of(result, "right", method="candidate", **own)
    for name, tolerance in (("image_auroc", 1e-9), ("pixel_auroc", 0.05)):  # of maps of S/4
        expected = np.mean([table[name] for table in tables])
        assert row[name] == pytest.approx(expected, abs=tolerance)


def test_rows_are_of_methods_and_selections_by_direction_and_their_mean(held):
    _, result = held
    for method in (PUBLISHED, UNLIKE, IN_SIGHT, LEFT_OUT, CHOSEN):
        each = [row_of(result, name, method=method)["image_auroc"] for name in NAMES[1:]]
        assert row_of(result, "mean", method=method)["image_auroc"] == pytest.approx(np.mean(each))
        assert method in result.table
    means = [r for r in result.rows if r["method"] == "candidate" and r["target"] == "mean"]
    assert [row["rank"] for row in means] == [1, 2, 3, 4]
    assert [row["merit"] for row in means] == sorted((row["merit"] for row in means), reverse=True)
    taken = row_of(result, "right", method=CHOSEN)
    values = {name: taken[name] for name in AXES}
    candidate = row_of(result, "right", method="candidate", **values)
    assert candidate["image_auroc"] == taken["image_auroc"]
    gain = candidate["image_auroc"] - row_of(result, "right", method=PUBLISHED)["image_auroc"]
    assert row_of(result, "mean", method="candidate", **values)["image_auroc_worst_gain"] <= gain


def test_without_a_choice_with_these_values_there_is_no_such_row(held, monkeypatch, capsys):
    monkeypatch.chdir(held[0])
    for axes, said in (
        ({"guides.atoms": [7]}, "it took none of these settings"),
        (AXES, "it was not run on"),
    ):
        run = replace(run_of(choose=axes), console=Console(1))
        settings = combinations(run, axes, "choose", module.SECTIONS)
        assert module._chosen(run, settings) == {}
        assert said in " ".join(capsys.readouterr().err.split())
        Path(run.paths.choice("left", "yaml")).unlink(missing_ok=True)


MASKLESS = math.nan


def figures_of(*candidates: Sequence[Sequence[float]]) -> np.ndarray:
    """(candidates, ways, 4) of image AUROC and one figure of pixels by direction."""
    return np.array([[[image, *[pixel] * 3] for image, pixel in each] for each in candidates])


def ways_of(*names: str) -> list[Direction]:
    return [Direction(aux=name[0], target=name[1]) for name in names]


@pytest.mark.parametrize(
    ("ways", "figures", "taken"),
    [
        # Without c the first is better, without b the second: each is best on the set left out.
        (("ab", "ac"), ([(0.6, 0.6), (0.9, 0.9)], [(0.9, 0.9), (0.5, 0.5)]), {"b": 0, "c": 1}),
        # A difference within the tolerance of `choose` counts.
        (("ab", "ac"), ([(0.9, 0.9)] * 2, [(0.9, 0.9), (0.904, 0.904)]), {"b": 1, "c": 0}),
        # A target counts no more where it is the auxiliary set.
        (
            ("ab", "bc", "ad"),
            ([(0.5, 0.5), (0.5, 0.5), (0.6, 0.6)], [(0.5, 0.5), (0.9, 0.9), (0.5, 0.5)]),
            {"b": 0, "c": 0, "d": 1},
        ),
        # Without masks image AUROC alone counts.
        (
            ("ab", "ac"),
            ([(0.6, MASKLESS), (0.5, 0.9)], [(0.9, MASKLESS), (0.9, 0.1)]),
            {"b": 0, "c": 1},
        ),
    ],
)
def test_a_target_has_no_part_in_what_is_taken_for_it(ways, figures, taken):
    assert left_out(figures_of(*figures), ways_of(*ways)) == taken


def test_in_sight_is_above_left_out_where_each_target_has_its_own_best():
    ways = tuple(ways_of("ab", "ac"))
    candidates = figures_of([(0.6, 0.6), (0.9, 0.9)], [(0.9, 0.9), (0.5, 0.5)])
    standings = Standings(ways, ({"n": 1}, {"n": 2}), candidates, {"base": candidates[0]}, {})
    means = {row["method"]: row for row in standings.rows({}) if row["target"] == "mean"}
    assert means[IN_SIGHT]["merit"] == pytest.approx(0.75)
    assert means[LEFT_OUT]["merit"] == pytest.approx(0.55)
    assert CHOSEN not in means
    assert "0.200" in plain(standings.tables("")[-1]).splitlines()[-1]


def test_worst_gains_and_merits_are_over_what_is_known():
    figures = figures_of([(0.6, 0.5), (0.9, MASKLESS)], [(0.8, 0.3), (0.4, MASKLESS)])
    np.testing.assert_allclose(worst_gains(figures, figures[0]), [[0, 0], [-0.5, -0.2]])
    np.testing.assert_allclose(merits(figures), [1.75 / 3, 1.2 / 3])


def test_means_over_seeds_are_taken_by_auxiliary_set():
    ways = ways_of("ac", "bc")
    found = [("a", {"c": np.full(4, 0.2)}), ("a", {"c": np.full(4, 0.4)}), ("b", {"c": np.ones(4)})]
    np.testing.assert_allclose(over_ways(found, ways)[:, 0], [0.3, 1])
    np.testing.assert_allclose(over_ways([(None, {"c": np.ones(4)})], ways), np.ones((2, 4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choose": {}}, "A league needs `choose:`"),
        ({"directions": []}, "A league needs `choose:`"),
        ({"directions": [WAYS[0].model_dump()]}, "All directions of the recipe have right"),
        ({"score": {"rule": "published"}}, "found contrast and published"),
        ({"choose": {"bank.weight": [1.0]}}, "expected one of sae, guides, decision"),
    ],
)
def test_what_cannot_be_a_league_is_refused_before_any_work(changes, message):
    with pytest.raises(SpgError, match=message):
        league(run_of(**changes))
