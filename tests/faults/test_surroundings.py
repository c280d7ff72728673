"""What a machine does to a run beside killing it: limits, its clock, files that change."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from e2e.helpers import ROOT, environment, must, one_message, spg
from layouts import photos, save, write_mvtec
from PIL import Image
from pipeline.test_checked import RECIPE
from tiny import TinyBackbone, extracted, files, manifest_of, write_folder

from spg_pipe.errors import SpgError

CHAIN = ("extract", "train-sae", "train-guides", "score", "evaluate", "report")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all has run once; both directions' sets are the same."""
    folder = tmp_path_factory.mktemp("whole")
    write_mvtec(folder / "left")
    rows = [RECIPE["datasets"][0], {**RECIPE["datasets"][0], "name": "right"}]
    (folder / "params.yaml").write_text(json.dumps(RECIPE | {"datasets": rows}))
    for command in CHAIN:
        must(spg(command, "--quiet", cwd=folder))
    return folder


def artefacts(folder: Path) -> dict[str, bytes]:
    return files(folder / "artifacts")


def test_a_clock_that_goes_backwards_changes_no_byte(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = artefacts(project)
    folder = shutil.copytree(project, tmp_path / "again", ignore=lambda *_: {"artifacts"})
    now, true = [time.time()], time.time_ns

    def backwards() -> float:
        now[0] -= 3600.0
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: true() - 10**15)
    for command in CHAIN:
        must(spg(command, cwd=folder))
    assert artefacts(folder) == expected


MADE = {"extract": "features", "score": "scores", "report": "report"}


def limit_with(free: int) -> int:
    """The limit on file handles that leaves so many free: each new one gets the lowest number."""
    used, limit = {int(path.name) for path in Path("/proc/self/fd").iterdir()}, 0
    while free:
        free -= limit not in used
        limit += 1
    return limit


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("command", MADE)
def test_too_few_file_handles_are_a_message_or_the_right_result(
    project: Path, tmp_path: Path, command: str
) -> None:
    """The system's own limit, a few above what is open, in a process whose imports are done."""
    expected, messages = artefacts(project), 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in (1, 2, 4, 8, 64):
        folder = shutil.copytree(project, tmp_path / str(more))
        for made in (folder / "artifacts").iterdir():
            if made.name == MADE[command]:
                shutil.rmtree(made)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with(more), hard))
        try:
            done = spg(command, cwd=folder)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if done.returncode:
            assert "Too many open files" in one_message(done)
            assert "ulimit -n" in done.stderr
            messages += 1
            must(spg(command, cwd=folder))
        assert artefacts(folder) == expected
        shutil.rmtree(folder)
    assert 0 < messages < 5


MEMORY = """
import resource, sys
import torch, zarr, timm, pandas, safetensors.torch, scipy.stats, sklearn.linear_model
import spg_pipe.pipeline.features, spg_pipe.pipeline.targets, spg_pipe.pipeline.training
import spg_pipe.backbones.load, spg_pipe.predict.run, spg_pipe.pipeline.predict
from spg_pipe.cli.main import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)) * 2**20,) * 2)
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("command", ["extract", "predict"])
def test_too_little_memory_is_a_message_or_the_right_result(
    project: Path, tmp_path: Path, command: str
) -> None:
    """The system's own limit on a process, so many MiB above what its imports took."""
    expected = artefacts(project)
    folder, words = shutil.copytree(project, tmp_path / "copy"), ["extract"]
    if command == "extract":
        shutil.rmtree(folder / "artifacts" / "features")
    else:
        big = photos(tmp_path / "big")
        noise = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
        save(noise, big / "a.bmp")  # as a PNG it would take seconds
        detector = "artifacts/detectors/mini/left-efficientnet-lite0-64-s111"
        words = ["predict", detector, str(big)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "8", *words],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "out of memory" in one_message(done)
    if command == "extract":
        must(spg("extract", cwd=folder))
    assert artefacts(folder) == expected


def test_an_image_or_a_mask_that_changes_while_it_is_read_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    """Or else its old fingerprint would stand on tokens of its new content."""
    root = write_folder(tmp_path / "parts")
    manifest = manifest_of(root)
    for name in ("bolt/good/02.png", "nut/ground_truth/dent/01_mask.png"):
        true = (root / name).read_bytes()
        pixels = np.asarray(Image.open(root / name))
        Image.fromarray(np.flipud(pixels)).save(root / name)
        with pytest.raises(SpgError, match=rf"{name} was changed since it was listed.*prepare"):
            extracted(manifest, tmp_path / "a.zarr")
        (root / name).write_bytes(true)
    whole = files(extracted(manifest, tmp_path / "b.zarr").path)
    assert files(extracted(manifest, tmp_path / "a.zarr", backbone=TinyBackbone()).path) == whole
