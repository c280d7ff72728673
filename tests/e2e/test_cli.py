"""The command line end to end on a miniature dataset, and what it says when input is bad."""

import json
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from layouts import save, write_mvtec, write_visa
from PIL import Image

from e2e.helpers import BIN, must, one_message, spg, spg_process

pytestmark = pytest.mark.slow

SMALL = {
    "name": "mini",
    "datasets": [
        {"name": "left", "layout": "mvtec", "root": "left", "split": "test"},
        {"name": "right", "layout": "visa", "root": "right", "split": "test"},
    ],
    "auxiliaries": ["left", "right"],
    "directions": [{"aux": "left", "target": "right"}, {"aux": "right", "target": "left"}],
    "backbone": {"alias": "efficientnet-lite0", "image_size": 64, "layers": ["s8", "s16"]},
    "extract": {"batch_images": 2},
    "sae": {"dict_size": 64, "k": 4, "tokens": 1600, "batch_tokens": 16},
    "guides": {"epochs": 2},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml and two miniature datasets; every stage has run once."""
    folder = _small_project(tmp_path_factory.mktemp("mini"))
    for command in ("prepare", "extract", "train-sae", "train-guides", "score", "evaluate"):
        must(spg(command, "--quiet", cwd=folder))
    return folder


def test_help_is_fast_and_does_not_import_torch() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([BIN / "spg-pipe", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    code = "import sys, spg_pipe.cli.main; print([m for m in HEAVY if m in sys.modules])"
    heavy = "HEAVY = ('torch', 'timm', 'open_clip', 'sklearn', 'matplotlib', 'pandas', 'zarr')"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{heavy}; {code}"], check=True, capture_output=True, text=True
    )
    assert loaded.stdout.strip() == "[]"
    # CPU time, because on a shared machine the wall's says more about its other guests.
    assert min(seconds) < 1, seconds


def test_evaluate_prints_a_table_and_json(project: Path) -> None:
    text = must(spg("evaluate", "--split", "right", cwd=project))
    assert "candle" in text
    assert "pcb1" in text
    rows = json.loads(must(spg("evaluate", "--split", "right", "--json", cwd=project)))
    (table,) = rows.values()
    mean = next(row for row in table if row["kind"] == "mean")
    held = (mean[name] for name in ("auxiliary", "dataset", "protocol", "seed", "resolution"))
    assert tuple(held) == ("left", "right", "exact", 111, "model")
    assert 0 <= mean["pixel_auroc"] <= 1
    # The scores are the recipe's own; only how they are judged differs.
    scores = next((project / "artifacts" / "scores" / "mini").glob("left--right*"))
    judged = ("--scores", scores, "--set", "metrics.resolution=original", "--json")
    rows = json.loads(must(spg("evaluate", "--split", "right", *judged, cwd=project)))
    assert all(row["resolution"] == "original" for table in rows.values() for row in table)


def test_report_and_inspect_and_verify(project: Path) -> None:
    must(spg("evaluate", "--quiet", cwd=project))
    must(spg("report", "--quiet", cwd=project))
    page = project / "artifacts" / "report" / "mini" / "index.html"
    assert "candle" in page.read_text()
    store = project / "artifacts" / "features" / "left-efficientnet-lite0-64.zarr"
    # As a process: the installed script, imports that no other command made, a real stdout.
    held = json.loads(must(spg_process("inspect", store, "--json", cwd=project)))
    assert held["images"] == 8
    assert held["layers"]["s8"]["patches"] == 64
    must(spg("verify", store, cwd=project))


def test_predict_writes_scores_and_overlays(project: Path, tmp_path: Path) -> None:
    detector = next((project / "artifacts" / "detectors" / "mini").glob("left*"))
    source = project / "right" / "candle" / "Data" / "Images"
    out = tmp_path / "out"
    printed = must(spg("predict", detector, source, "--out", out, "--json", cwd=project))
    lines = [json.loads(line) for line in printed.splitlines()]
    images = sorted(p for p in source.rglob("*") if p.is_file())
    assert [line["path"] for line in lines] == [p.relative_to(source).as_posix() for p in images]
    with Image.open(out / lines[0]["files"]["overlay"]) as overlay, Image.open(images[0]) as image:
        assert overlay.size == image.size
    assert (out / "scores.csv").read_text().count("\n") == len(images) + 1
    text = spg("predict", detector, images[0], "--out", out, cwd=project)
    assert text.returncode == 0
    assert "licence" in text.stderr.lower()


@contextmanager
def nothing_fits() -> Iterator[None]:
    """No file may get longer than a few bytes, as on a full disk; nor may pytest's own output."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FILLED = [
    ("prepare",),
    ("extract", "--split", "left", "--limit", "2"),
    ("train-sae", "--aux", "left", "--set", "sae.k=3"),
    ("train-guides", "--aux", "left"),
    ("score", "--split", "right"),
    ("evaluate", "--split", "right"),
    ("report",),
    ("recipe", "use", "paper-dinov3", "--params", "new.yaml", "--mvtec", "left", "--visa", "right"),
    ("synthesise", "left", "painted", "--layout", "mvtec"),
    ("inspect", "STORE", "--pca", "tokens.png"),
    ("predict", "DETECTOR", "left/bottle/test/good"),
]


@pytest.mark.parametrize("command", FILLED, ids=lambda command: command[0])
def test_a_full_disk_is_one_message_that_names_the_place(project, command):
    artifacts = project / "artifacts"
    places = {
        "STORE": artifacts / "features" / "left-efficientnet-lite0-64.zarr",
        "DETECTOR": next((artifacts / "detectors" / "mini").glob("left*")),
    }
    with nothing_fits():
        result = spg(*(places.get(part, part) for part in command), cwd=project)
    said = one_message(result)
    assert "File too large: " in said
    assert any(
        place in said
        for place in ("artifacts/", "new.yaml", "painted", "tokens.png", "predictions")
    )
    assert not re.search(r"\.tmp|\.old|\.partial|\.new|Errno", said), said


def test_a_folder_of_images_is_extracted_and_scored(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / """my "best" one's"""
    for i, kind in enumerate(("good", "good", "bent")):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        save(pixels, folder / kind / f"{i}.png")
    must(spg("extract", "--split", folder, "--quiet", cwd=project))
    detector = next((project / "artifacts" / "detectors" / "mini").glob("left*"))
    arguments = ("--split", folder, "--detector", detector, "--json")
    (scores,) = json.loads(must(spg("score", *arguments, cwd=project)))["scores"]
    held = json.loads(must(spg("inspect", project / scores, "--json", cwd=project)))
    assert held["images"] == 3
    # A command that it prints takes any name of a folder.
    few = ("--split", folder, "--normals", folder / "good", "--bank", "alone")
    scored = spg("score", *few, cwd=project)
    (printed,) = re.findall(r"Judge them with `spg-pipe ([^`]+)`", " ".join(scored.stderr.split()))
    assert "image" in must(spg(*shlex.split(printed), cwd=project))


def test_large_images_are_looked_at_in_tiles(project: Path, tmp_path: Path) -> None:
    detector = next((project / "artifacts" / "detectors" / "mini").glob("left*"))
    options = ("--split", "right", "--tiles", "64,128", "--json")
    (store,) = json.loads(must(spg("extract", *options, cwd=project)))["stores"]
    whole = project / "artifacts" / "features" / "right-efficientnet-lite0-64.zarr"
    assert project / store != whole
    given = ("--split", "right", "--detector", detector, "--store", store, "--json")
    (scores,) = json.loads(must(spg("score", *given, cwd=project)))["scores"]
    judged = ("evaluate", "--split", "right", "--scores", scores, "--store", store)
    tiles = "efficientnet-lite0@64+128 in tiles of 64 (overlap 25%)"
    assert tiles in must(spg(*judged, cwd=project))
    source = project / "right" / "candle" / "Data" / "Images"
    predict = ("predict", detector, source, "--out", tmp_path / "o", "--tiles")
    told = spg(*predict, "128", cwd=project)
    assert "efficientnet-lite0@128 in tiles of 64" in must(told)
    for size, message in (("100", "multiple of 16"), ("32", "smaller than a tile")):
        assert message in one_message(spg(*predict, size, cwd=project))
    wrong = spg(*predict, "two", cwd=project)
    assert (wrong.returncode, "expected pixels" in wrong.stderr) == (2, True)


def test_gated_weights_give_advice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the variable is read only once
    before = sorted((project / "artifacts").rglob("*"))
    message = one_message(spg("extract", "--backbone", "dinov3", "--quiet", cwd=project))
    assert "dinov3" in message.lower()
    assert "--weights" in message
    assert before == sorted((project / "artifacts").rglob("*"))


def test_score_without_data_says_how_to_get_it(project: Path) -> None:
    message = one_message(spg("score", "--split", "visa", cwd=project))
    assert "visa" in message
    assert "recipe use" in message


def test_corrupt_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    folder = _small_project(tmp_path)
    bad = folder / "left" / "bottle" / "test" / "good" / "001.png"
    bad.write_bytes(bad.read_bytes()[:-200])
    message = one_message(spg("extract", "--split", "left", "--quiet", cwd=folder))
    assert "001.png" in message
    # No shard was finished, so there is nothing that a later extract could go on with.
    assert not list((folder / "artifacts").rglob("*.zarr"))


def test_wrong_usage_exits_with_2(tmp_path: Path) -> None:
    assert spg_process("extract", "--no-such-option", cwd=tmp_path).returncode == 2


def _small_project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    write_mvtec(folder / "left")
    write_visa(folder / "right", seed=1)
    (folder / "params.yaml").write_text(yaml.safe_dump(SMALL))
    return folder
