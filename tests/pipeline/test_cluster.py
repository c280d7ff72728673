"""The same units on the workers of a cluster: the same bytes, whoever dies (docs/scale.md)."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import LocalCluster
from distributed.core import Status
from e2e.helpers import ROOT
from tiny import extracted, files, flip

from benchmarks import units
from pipeline.units import DiesOnce, Squares, TinyShards
from spg_pipe.artefacts import files as artefacts
from spg_pipe.detector import scores as scores_module
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import DamagedError, SpgError, UsageError
from spg_pipe.pipeline import cluster
from spg_pipe.pipeline.cluster import Workers
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.features import BEGIN
from spg_pipe.pipeline.jobs import EvaluateJob, ScoreJob, evaluated, scored
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import local_workers
from spg_pipe.recipe.params import MetricParams, parse_params
from spg_pipe.store.finish import finish_store
from spg_pipe.store.reader import FeatureStore


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two processes."""
    with cluster.opened("local:2", print) as opened:
        yield opened


@pytest.mark.slow
def test_workers_that_are_killed_in_every_shard_change_nothing(
    workers, tiny_store, tiny_images, tmp_path
):
    place = tmp_path / "a.zarr"
    with workers.serving(TinyShards(tiny_images, place, tmp_path)) as results:
        ((_, missing),) = results([BEGIN])
        assert missing == [0, 1, 2]
        assert sorted(results(missing)) == [(0, []), (1, []), (2, [])]
    assert len(list(tmp_path.glob("*.died"))) == 3
    finish_store(place)
    assert files(place) == files(tiny_store.path)


def score_job(detector: Any, store: Any) -> ScoreJob:
    return ScoreJob(detector, store.path, store.fingerprint, None, None, "cpu")


def test_a_worker_that_sees_another_store_or_other_maps_computes_nothing(
    tiny_store, tiny_manifest, tiny_detector, tmp_path, copy_of
):
    """As of a machine with folders of its own in the same places."""
    place = copy_of(tiny_store.path)
    made = score_store(tiny_detector, FeatureStore(place), tmp_path / "scores")
    metrics = EvaluateJob(made, place, MetricParams(), None, None)
    assert metrics.open()("nut").images == 8
    flip(next(path for path in (made.path / "maps.zarr").rglob("c/*/*/*") if path.is_file()))
    with pytest.raises(DamagedError, match=r"maps\.zarr.* is damaged"):
        metrics.open()
    job = score_job(tiny_detector, FeatureStore(place))
    shutil.rmtree(place)
    extracted(tiny_manifest.spread(6), place)
    for each in (job, metrics):
        with pytest.raises(SpgError, match=r"another store for a worker.*one file system"):
            each.open()


@pytest.mark.slow
def test_scores_and_metrics_of_workers_that_are_killed_are_those_of_one_process(
    workers, tiny_store, tiny_detector, tmp_path, monkeypatch
):
    monkeypatch.setattr(scores_module, "CHUNK_IMAGES", 8)  # two units
    done: list[int] = []
    alone = score_store(tiny_detector, tiny_store, tmp_path / "alone")
    (marks := tmp_path / "marks").mkdir()
    job = score_job(tiny_detector, tiny_store)
    dying: Any = SimpleNamespace(serving=lambda job: workers.serving(DiesOnce(job, marks)))
    with scored(dying, job, tiny_store, lambda now, _: done.append(now)) as parts:
        shared = score_store(tiny_detector, tiny_store, tmp_path / "shared", parts=parts)
    assert done == [8, 16]
    assert files(shared.path) == files(alone.path)
    params = MetricParams(accumulator="histogram")
    evaluate_scores(alone, tiny_store, params).save(tmp_path / "whole" / "run.json")
    with evaluated(dying, EvaluateJob(shared, tiny_store.path, params, None, None)) as judged:
        merged = evaluate_scores(shared, tiny_store, params, judged=judged)
    merged.save(tmp_path / "merged" / "run.json")
    assert files(tmp_path / "whole") == files(tmp_path / "merged")
    assert sorted(path.name for path in marks.iterdir()) == [
        *("bolt.died", "nut.died", "range(0, 8).died", "range(8, 16).died"),
    ]


def test_units_are_submitted_as_room_is_for_them(workers):
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100, 150):
            taken.append(number)
            yield number

    with workers.serving(Squares()) as results:
        first = list(results([99]))  # Dask may still hold its result
        assert [(unit, square) for unit, (square, _) in first] == [(99, 99**2)]
        answers = {}
        for unit, (square, process) in results(numbers()):
            assert len(taken) - len(answers) <= 4 + 1  # two a worker, and the one that came back
            answers[unit] = square, process
    assert [answers[number][0] for number in range(100, 150)] == [n**2 for n in range(100, 150)]
    assert os.getpid() not in {process for _, process in answers.values()}


def test_a_quarter_of_the_window_is_one_submission(workers, monkeypatch):
    sizes: list[int] = []
    submit = workers._submit

    def noted(name: str, numbered: list[Any]) -> Any:
        sizes.append(len(numbered))
        return submit(name, numbered)

    monkeypatch.setattr(workers, "_submit", noted)
    monkeypatch.setattr(workers, "_room", lambda: 16)
    with workers.serving(Squares()) as results:
        assert sorted(unit for unit, _ in results(range(100, 160))) == [*range(100, 160)]
    assert (sizes[0], sum(sizes)) == (16, 60)
    assert len([size for size in sizes if 0 < size < 4]) <= 1  # the last


def test_an_error_of_a_unit_names_its_worker_elsewhere(workers):
    address = workers._client.cluster.scheduler_address
    says = r"^On the worker tcp://127\.0\.0\.1:\d+: 13 has no square\. .*the same folders"
    with (
        cluster.opened(address, print) as opened,
        opened.serving(Squares()) as results,
        pytest.raises(SpgError, match=says),
    ):
        list(results([13]))


def test_an_error_of_a_unit_is_the_runs(workers):
    with (
        workers.serving(Squares()) as results,
        pytest.raises(SpgError, match=r"^13 has no square\. Take another\.$"),
    ):
        list(results([12, 13]))


@pytest.mark.slow
def test_a_unit_that_kills_every_worker_is_one_message(workers, monkeypatch):
    monkeypatch.setattr(workers._client.cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(cluster, "_TRIES", 2)
    with (
        workers.serving(Squares()) as results,
        pytest.raises(SpgError, match=r"died with the same unit of work, number 0: .*memory"),
    ):
        list(results([66]))


def test_local_workers_that_died_while_they_started_are_started_again():
    status = {0: Status.failed, 1: Status.running, 2: Status.closed, 3: Status.starting}
    nannies = {name: SimpleNamespace(status=each) for name, each in status.items()}
    asked: list[int] = []
    started: Any = SimpleNamespace(workers=nannies, scale=asked.append)
    cluster._revive(started, 4)
    assert (list(nannies), asked) == ([1, 3], [4])


def test_workers_of_other_versions_are_refused(workers, monkeypatch):
    true = artefacts.versions()
    monkeypatch.setattr(cluster, "versions", lambda: true | {"torch": "1.0"})
    with (
        workers.serving(Squares()) as results,
        pytest.raises(SpgError, match=rf"torch {true['torch'].split('+')[0]}.*, not 1\.0.*same"),
    ):
        list(results([2]))


def test_no_scheduler_is_one_message(monkeypatch, capfd):
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 2)
    none = r"No Dask scheduler answers at tcp://127\.0\.0\.1:\d+ \(%s.*check the address"
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("", 0)) as loud:
        Thread(target=lambda: loud.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.6\r\n")).start()
        for address, says in (
            ("tcp://127.0.0.1:9", none % "Timed out"),
            (f"tcp://127.0.0.1:{silent.getsockname()[1]}", none % "nothing came"),
            (f"tcp://127.0.0.1:{loud.getsockname()[1]}", none % "another program does"),
            ("tls://127.0.0.1:9", r"tls://127\.0\.0\.1:9 needs certificates"),
        ):
            with pytest.raises(SpgError, match=says), cluster.opened(address, print):
                pass
    assert capfd.readouterr().err == ""


def test_a_scheduler_without_workers_is_said_and_given_up(monkeypatch):
    for name, seconds in (("_A_LOOK", 0.1), ("_TO_SAY", 0.5), ("", 100)):
        monkeypatch.setattr(cluster, f"_SECONDS{name}", seconds)
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        monkeypatch.setattr(cluster, "_SECONDS", 0)  # they are over

    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as started,
        cluster.opened(started.scheduler_address, say) as opened,
        opened.serving(Squares()) as results,
        pytest.raises(SpgError, match=r"all workers of .* are gone"),
    ):
        list(results([2]))
    assert said == [f"{started.scheduler_address}: no worker is there; waiting 100 s for one."]


@pytest.mark.slow
def test_a_scheduler_that_is_killed_is_one_message(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 15)  # again, before it gives up
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
    started = []
    try:
        for process in units.processes(tmp_path, 2):
            started.append(process)
            where = units.address(tmp_path / "scheduler.json")
        with cluster.opened(where, print) as opened, opened.serving(Squares()) as results:
            answers = results(range(20, 60))
            next(answers)
            started[0].kill()
            with pytest.raises(SpgError, match=r"scheduler or all workers of tcp://.* are gone\."):
                list(answers)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert capfd.readouterr().err == ""


WRONG = ["local:0", "local:", "local:x", "local:²", "local:1000", "", "there", "tcp://there:x"]


@pytest.mark.parametrize("name", [*WRONG, "ucx://there:1", "http://there:1"])
def test_what_is_no_cluster_is_refused(name):
    with pytest.raises(UsageError, match=r"expected local, local:N.*tcp://host:8786"):
        local_workers(name)
    assert (local_workers("local:3"), local_workers("LOCAL:2")) == (3, 2)
    for address in ("tcp://there:8786", "there:8786", "tls://[::1]:8786"):
        assert local_workers(address) is None


def test_a_run_for_workers_has_whole_paths_and_a_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spg_pipe.pipeline.run.cpu_workers", lambda _: 8)
    content = {"datasets": [], "auxiliaries": [], "directions": [], "name": "x"}
    content |= {"backbone": {"alias": "efficientnet-lite0", "weights": "own.pth"}}
    run = RecipeRun(parse_params(content, "test"), Console(0), cluster="local:2")
    sent = run.for_workers()
    assert (sent.workers, sent.cluster) == (4, None)
    assert sent.params.backbone.weights == Path(tmp_path / "own.pth")


def test_without_dask_the_option_says_what_to_install(monkeypatch):
    monkeypatch.setattr("spg_pipe.pipeline.run.importlib.util.find_spec", lambda _: None)
    content = {"datasets": [], "auxiliaries": [], "directions": [], "name": "x"}
    run = RecipeRun(parse_params(content, "test"), Console(0), cluster="local:2")
    with pytest.raises(SpgError, match=r"spg-pipe\[cluster\]"), run.workers_of_cluster():
        pass
