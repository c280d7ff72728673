"""Shards, scores and metrics by several processes at the command line: the bytes of one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from layouts import write_mvtec, write_visa
from pipeline.test_checked import RECIPE
from tiny import files

from e2e.helpers import must, one_message, run_stage, spg, spg_process

LEFT = ("--split", "left")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process ran everything: 72 images, two shards."""
    folder = tmp_path_factory.mktemp("alone")
    write_mvtec(folder / "left", good=34, train=0)
    write_visa(folder / "right", seed=1)
    (folder / "params.yaml").write_text(json.dumps(RECIPE | {"seeds": [1]}))
    for command in ("prepare", "extract", "train-sae", "train-guides", "score", "evaluate"):
        must(spg(command, cwd=folder))
    return folder


@pytest.fixture
def again(alone: Path, tmp_path: Path) -> Callable[..., Path]:
    """That folder with these artefacts alone."""

    def copied(*kept: str) -> Path:
        folder = tmp_path / "again"
        shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("artifacts"))
        for kind in kept:
            shutil.copytree(alone / "artifacts" / kind, folder / "artifacts" / kind)
        return folder

    return copied


def store(folder: Path) -> Path:
    return folder / "artifacts/features/left-efficientnet-lite0-64.zarr"


def test_shards_by_two_commands_and_finish(alone, again):
    folder = again("manifests")
    name = store(folder).relative_to(folder)
    second = spg_process("extract", *LEFT, "--shards", "1:2", "--json", cwd=folder)
    assert json.loads(must(second)) == {
        "path": str(name),
        "written": [1],
        "there": [],
        "held": [],
    }
    refused = one_message(spg("finish", name, cwd=folder))
    assert "lacks 1 of its 2 shards: 0:1. Make them with" in refused
    said = spg("extract", *LEFT, "--shards", "0:2", cwd=folder)
    assert "Shards 1:2 were there." in said.stderr
    assert f"left: computed 1 of 2 shards → {name}. When all are there: `" in said.stderr
    assert f"`spg-pipe finish {name}`" in said.stderr
    assert "The images are those of artifacts/manifests/left-test.parquet" in said.stderr
    assert must(spg("finish", name, "--json", cwd=folder)) == must(
        spg("finish", name, "--json", cwd=folder)
    )
    assert files(store(folder)) == files(store(alone))
    said = spg("extract", *LEFT, "--shards", "0:2", cwd=folder).stderr
    assert "left: computed 0 of 2 shards" in said
    assert "The store is finished." in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shards", "0:3"), "has 2 shards (64 images each). Expected A:B with 0 ≤ A < B ≤ 2."),
        (("--shards", "0:1", "--replace"), "leave out --replace and --cluster (SPG_PIPE_CLUSTER)"),
        (
            ("--shards", "0:1", "--cluster", "local:2"),
            "leave out --replace and --cluster (SPG_PIPE_CLUSTER)",
        ),
    ],
)
def test_shards_that_cannot_be_are_refused(again, options, message):
    folder = again("manifests")
    assert message in one_message(spg("extract", *LEFT, *options, cwd=folder))
    assert not store(folder).exists()


@pytest.mark.parametrize(
    "words",
    [
        ("extract", *LEFT, "--shards", "1"),
        ("extract", *LEFT, "--shards", "a:b"),
        ("extract", *LEFT, "--shards", f"0:{'1' * 5000}"),
        ("score", "--cluster", "local:0"),
    ],
)
def test_what_cannot_be_read_is_wrong_usage(again, words):
    assert spg(*words, cwd=again()).returncode == 2


@pytest.mark.slow
def test_a_cluster_gives_the_bytes_of_one_process(alone, again, monkeypatch):
    folder = again("manifests", "sae", "detectors", "features")
    shutil.rmtree(store(folder))
    monkeypatch.setenv("SPG_PIPE_CLUSTER", "local:2")
    (folder / "artifacts/recipe").mkdir()
    must(run_stage("extract@data0", folder))  # as DVC runs it
    assert files(store(folder)) == files(store(alone))
    monkeypatch.delenv("SPG_PIPE_CLUSTER")
    for command in ("score", "evaluate"):  # by two workers in pipeline/test_cluster.py
        must(spg(command, "--cluster", "local:1", cwd=folder))
    for kind in ("scores", "metrics"):
        assert files(folder / "artifacts" / kind) == files(alone / "artifacts" / kind), kind
    assert "leave out --cluster" in one_message(
        spg("score", "--split", "right", "--normals", "right", "--cluster", "local:2", cwd=folder)
    )


def test_a_recipe_whose_stores_lie_behind_a_url_gives_the_same_artefacts(alone, again):
    folder = again("manifests")
    (folder / "params.yaml").write_text(
        json.dumps(RECIPE | {"seeds": [1], "stores": "memory://bucket/stores/"})
    )
    url = "memory://bucket/stores/left-efficientnet-lite0-64.zarr"
    assert f"`spg-pipe finish {url}`" in spg("extract", *LEFT, "--shards", "0:1", cwd=folder).stderr
    refused = one_message(spg("finish", url, cwd=folder))
    assert f"{url} lacks 1 of its 2 shards: 1:2" in refused
    for command in ("extract", "train-sae", "train-guides", "score", "evaluate"):
        must(spg(command, cwd=folder))
    for kind in ("sae", "detectors", "scores", "metrics"):
        assert files(folder / "artifacts" / kind) == files(alone / "artifacts" / kind)
    assert not store(folder).exists()
    assert f"{url}: 24 files and 72 images are intact" in spg("verify", url, cwd=folder).stderr
    assert json.loads(must(spg("inspect", url, "--json", cwd=folder)))["images"] == 72
    must(spg("train-sae", "--aux", "left", "--store", url, cwd=folder))  # the same as without
    assert len(list((folder / "artifacts/sae").glob("*/*"))) == 1
    assert "--replace removes folders alone" in one_message(spg("extract", "--replace", cwd=folder))
