"""Training curves by DVCLive, and finished artefacts in MLflow."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from e2e.helpers import one_message, spg
from mlflow import MlflowClient
from tiny import files

from pipeline.test_checked import RECIPE, MakeRun, finished, project  # noqa: F401
from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.errors import SpgError, UsageError
from spg_pipe.guides.trained.train import Training
from spg_pipe.pipeline import targets, training
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.track import track
from spg_pipe.sae.train import Fit


@pytest.fixture
def curves(project: MakeRun, monkeypatch: pytest.MonkeyPatch) -> MakeRun:  # noqa: F811
    """The finished project as one of DVC, without Git; nothing of it may use the network."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    Path(".dvc").mkdir()
    return project


def shown(artefact: Path, layer: str, name: str) -> pd.DataFrame:
    folder = Path("dvclive") / artefact.relative_to("artifacts")
    assert (folder / "dvc.yaml").read_text() == "plots:\n- plots/metrics:\n    x: step\n"
    return pd.read_csv(folder / "plots" / "metrics" / layer / f"{name}.tsv", sep="\t")


def test_live_curves_of_an_sae_are_those_of_the_file_and_go_on_after_a_kill(curves, monkeypatch):
    run = curves()
    path = run.paths.sae("left", 111)
    before = files(path)
    assert not Path("dvclive").exists()  # it was trained outside of a DVC project
    with monkeypatch.context() as patch:
        steps = itertools.count(1)
        patch.setattr(Checkpoints, "due", lambda _: next(steps) % 20 == 0)
        true = Fit.take

        def take(fit: Fit, *given: object) -> None:
            if fit.layer == "s16" and fit.step == 50:
                raise KeyboardInterrupt
            true(fit, *given)

        patch.setattr(Fit, "take", take)
        with pytest.raises(KeyboardInterrupt):
            training.train_sae(run, "left", 111)
    assert len(shown(path, "s16", "reconstruction")) < 300  # while it runs
    training.train_sae(run, "left", 111)
    assert files(path) == before
    curve = pd.read_csv(path / "curve.csv")
    for layer, rows in curve.groupby("layer"):
        for name in ("reconstruction", "auxk", "dead_share", "tokens"):
            live = shown(path, layer, name)
            assert live["step"].tolist() == rows["step"].tolist()
            assert live[name].tolist() == rows[name].tolist()


def test_live_curves_of_trained_guides_are_those_of_each_seeds_file(curves, monkeypatch):
    run = curves(guides={"kind": "trained", "epochs": 3})
    training.train_sae(run, "left", 7)
    true, ends = Training.end_epoch, []
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", lambda _: True)

        def end(self: Training) -> None:
            if ends.append(1) or len(ends) == 3:
                raise KeyboardInterrupt
            true(self)

        patch.setattr(Training, "end_epoch", end)
        with pytest.raises(KeyboardInterrupt):
            training.train_guides_together([run], "left", [111, 7])
    for path in training.train_guides_together([run], "left", [111, 7]):
        live, curve = shown(path, "", "total"), pd.read_csv(path / "curve.csv")
        assert live["step"].tolist() == curve["epoch"].tolist() == [1, 2, 3]
        assert live["total"].tolist() == pytest.approx(curve["total"].tolist(), rel=1e-6)


def test_what_dvclive_cannot_open_costs_the_curve_and_not_the_training(curves, capsys):
    os.system("git init -q .")  # noqa: S605 - no commit yet: DVCLive ends in a traceback
    Path(".dvc/config").touch()
    run = dataclasses.replace(curves(), console=Console(1))
    path = training.train_sae(run, "left", 111)
    assert "note: no live curve: SCMError: Empty git repo" in capsys.readouterr().err
    assert (path / "curve.csv").exists()


@pytest.mark.parametrize("broken", ["log_metric", "next_step", "end"])
def test_a_live_curve_that_breaks_off_is_said_once_and_training_goes_on(
    curves, monkeypatch, capsys, broken
):
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(f"dvclive.Live.{broken}", full)
    run = dataclasses.replace(curves(), console=Console(1))
    path = training.train_sae(run, "left", 111)
    assert (path / "curve.csv").exists()
    assert capsys.readouterr().err.count("note: no live curve: OSError: No space left") == 1


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's store in a folder, which needs no server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def test_finished_artefacts_are_sent_once(project, server, monkeypatch):  # noqa: F811
    run = project()
    targets.report(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    first = track(run, None)
    assert (len(first["sent"]), first["there"]) == (2, [])
    assert track(run, server) == {"sent": [], "there": first["sent"]}
    client = MlflowClient(server)
    held = client.get_run(first["sent"][0])
    assert held.info.run_name == "left → right, seed 111"
    metrics = targets.read_metrics(run.paths.metrics("left", "right", 111))
    assert held.data.metrics["image_auroc"] == metrics.mean.metrics["image_auroc"]
    category = metrics.categories[0]
    name = f"{category.category}/pixel_ap"
    assert held.data.metrics[name] == category.metrics["pixel_ap"]
    assert held.data.params["sae.k"] == "4"
    assert held.data.params["backbone.layers"] == '["s8", "s16"]'
    wanted = {"dataset": "right", "split": "test", "seed": "111", "protocol": "exact"}
    assert wanted.items() <= held.data.tags.items()
    names = {each.path for each in client.list_artifacts(held.info.run_id, "detector")}
    assert names == {"detector/config.json"}
    pages = {each.path for each in client.list_artifacts(first["sent"][1], "report")}
    assert "report/index.html" in pages


def test_what_broke_off_or_was_made_anew_is_sent_again(project, server, monkeypatch):  # noqa: F811
    run = project()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError("x")))
        with pytest.raises(SpgError, match=r"MLflow at file:.*: x"):
            track(run, server)
    with monkeypatch.context() as patch:  # the first error is told, not what follows from it
        patch.setattr(MlflowClient, "log_batch", lambda *_: (_ for _ in ()).throw(OSError("dead")))
        patch.setattr(MlflowClient, "set_terminated", lambda *_: json.loads("no answer"))
        with pytest.raises(SpgError, match=r"MLflow at file:.*: dead"):
            track(run, server)
    assert len(track(run, server)["sent"]) == 1
    run = project(metrics={"resolution": "original"}, options=False)
    targets.evaluate(run, "right")
    assert len(track(run, server)["sent"]) == 1


def test_a_server_that_is_not_there_is_named_without_its_password(project, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SpgError, match=r"//127\.0\.0\.1:9: it does not answer") as raised:
        track(project(), "http://me:secret@127.0.0.1:9")
    assert "secret" not in str(raised.value)


def test_without_a_server_or_a_result_track_says_what_to_do(
    project,  # noqa: F811
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="Add --uri"):
        track(project(), None)
    run = project()
    run.paths.metrics("left", "right", 111).unlink()
    with pytest.raises(SpgError, match="There are no metrics"):
        track(run, server)
    assert not Path(server.removeprefix("file://")).exists()


def test_the_command_names_the_extra_that_it_needs(project, server, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "mlflow", None)
    Path("params.yaml").write_text(json.dumps(RECIPE))
    message = one_message(spg("track", "--to", "mlflow", "--uri", server, cwd=Path.cwd()))
    assert "pip install 'spg-pipe[track]'" in message
