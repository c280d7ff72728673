"""What N images would cost: formulas to the byte, rates by the stages' own code."""

from __future__ import annotations

import pytest
from tiny import TinyBackbone
from typer.testing import CliRunner

from spg_pipe.cli.main import app
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.plan import (
    COUNTS,
    STAGES,
    Line,
    Rates,
    Setting,
    StagePlan,
    StageRates,
    as_text,
    plan,
)
from spg_pipe.pipeline.probe import Probe
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import MetricParams, SaeParams, parse_params
from spg_pipe.store.format import LayerShape, StoreSpec

LAYER = LayerShape(grid=(28, 28), dim=1024, prefix=("cls",))


def setting(metrics: MetricParams | None = None, **sae: object) -> Setting:
    store = StoreSpec.model_construct(layers={"24": LAYER}, dtype="float16")
    params = SaeParams.model_validate(sae)
    return Setting(store, 448, params, 0, metrics or MetricParams(), 900)


def rates() -> Rates:
    stage = StageRates(Line(1, 0.5), Line(10, 2), 3, Line(5, 7))
    counted = StageRates(Line(1, 0.2), Line(20, 0), 3, Line(5, 7))
    return Rates(4.0, 100.0, dict.fromkeys(STAGES, stage) | {COUNTS: counted}, {"24": 0.1})


def planned(
    images: int, *, workers: int = 1, categories: int = 1, **sae: object
) -> dict[str, StagePlan]:
    sae = {"tokens": 1_024_000} | sae
    plans = plan(rates(), setting(**sae), images, workers=workers, categories=categories)
    return {each.stage: each for each in plans}


def test_an_sae_with_a_budget_takes_as_many_steps_whatever_the_images():
    few, many, steps = planned(10_000), planned(10_000_000), 4 + 1 + 1000 * 0.1
    assert few["train-sae"].seconds == pytest.approx(steps + 0.5 * 10_000)
    assert many["train-sae"].seconds == pytest.approx(steps + 0.5 * 10_000_000)
    epochs = planned(10_000, tokens=None, epochs=2)
    assert epochs["train-sae"].seconds == pytest.approx(5 + 15_314 * 0.1 + 5000, rel=1e-3)


def test_workers_share_units_and_never_more():
    several = planned(6400, workers=8, categories=3)
    units = {name: each.units for name, each in several.items()}
    assert units == dict.fromkeys(STAGES, 1) | {"extract": 100, "score": 25, "evaluate": 3}
    assert several["extract"].worker_seconds == pytest.approx(5 + 3200 * 13 / 100)
    assert several["evaluate"].workers == 3
    assert several["train-sae"].worker_seconds == several["train-sae"].seconds


def test_memory_is_bounded_where_images_stream():
    assert planned(10**6)["extract"].memory_bytes == 100 + 10 + 2 * 64 + 3 * 10**6
    held = [planned(n)["evaluate"].memory_bytes - 3 * n for n in (83, 10**6)]
    assert held == [100 + 10 + 2 * 83, 100 + 20]  # sorted, and counted
    ways = ({}, {"resolution": "original"}, {"accumulator": "histogram"}, {"protocol": "spg"})
    given = [setting(MetricParams.model_validate(way)) for way in ways]
    assert [sum(map(each.sorts, range(1, 100))) for each in given] == [83, 20, 0, 99]
    assert planned(60, categories=6)["evaluate"].memory_bytes == 100 + 10 + 2 * 10 + 3 * 60


def test_a_gallery_is_bounded_and_requests_grow_with_images():
    few, many = planned(4000), planned(400_000)
    assert many["report"].seconds == few["report"].seconds
    # 1.6 MB an image: two requests a batch of eight, and the prefix tokens of each shard.
    assert few["score"].requests == 500 * 2 + 63 + 1 + 3 + 11 + 2
    assert 90 < many["score"].requests / few["score"].requests < 110


def test_more_categories_than_images_are_refused():
    done = CliRunner().invoke(app, ["plan", "--images", "3", "--categories", "4"])
    assert str(done.exception) == "--categories 4 are more than --images 3: say fewer."


def test_columns_are_as_wide_as_their_content():
    text = as_text(list(planned(10**15, workers=10**6).values()), 10**6)
    assert len({len(line) for line in text.splitlines()}) == 1


def test_a_line_through_noise_never_falls():
    assert Line.through((10, 3.0), (30, 2.0)) == Line(2.0, 0.0)
    assert Line.through((10, 3.0), (30, 5.0)) == Line(2.0, 0.1)


def test_the_probe_runs_the_stages_of_a_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr("spg_pipe.pipeline.probe.load_backbone", lambda run: TinyBackbone())
    monkeypatch.setattr("spg_pipe.pipeline.probe._SECONDS", 0.5)
    content = {"name": "p", "datasets": [], "auxiliaries": [], "directions": []}
    content |= {"sae": {"dict_size": 32, "k": 4, "tokens": 10_000}}
    run = RecipeRun(parse_params(content, "test"), Console(0))
    monkeypatch.chdir(tmp_path)
    found, given = Probe(run, 40, tmp_path / "probe").rates()
    assert set(found.stages) == {*STAGES, COUNTS}
    plans = {each.stage: each for each in plan(found, given, 64)}
    stores = tmp_path / "probe" / "artifacts" / "features"
    (many,) = [path for path in stores.iterdir() if path.name.startswith("many")]
    size = sum(path.stat().st_size for path in many.rglob("*") if path.is_file())
    assert plans["extract"].disk_bytes == pytest.approx(size, rel=0.01)
    for each in plans.values():
        assert each.seconds > 0
        assert each.disk_bytes > 0
        assert each.memory_bytes > 50e6
    text = as_text(list(plans.values()), 1)
    assert [line.split()[0] for line in text.splitlines()[1:]] == [*STAGES, "together"]
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]
