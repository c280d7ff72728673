"""A run that is killed again and again ends with the files of an unbroken one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from tiny import files, photograph

IMAGES = 24
RUNS = """
import os, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny import TinyBackbone
from spg_pipe.detector.model import Detector
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.run import ResultFolder, RunRecord

def run(out):
    backbone = TinyBackbone()
    predictor = Predictor(Detector.load(sys.argv[2]), backbone)
    items = find_items([sys.argv[3]], out)
    with ResultFolder(out, RunRecord(identity={"of": "the test"})) as folder:
        then = partial(finish, how=Finish(predictor, out, folder.begin, maps=True))
        for entry in judge_items(predictor, items, Reading(), then, known=folder.known):
            folder.add(entry)
            print(backbone.calls, flush=True)
        folder.finish(coco=True)

for line in sys.stdin:  # imports take seconds, so that they are done once
    if not (child := os.fork()):
        print(os.getpid(), flush=True)
        run(Path(line.strip()))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("over", status, flush=True)
"""


@pytest.fixture
def runs(tmp_path: Path, tiny_detector) -> Iterator[subprocess.Popen[str]]:
    """A process that runs as often as a folder for its results is written to it."""
    tiny_detector.save(tmp_path / "detector")
    for number in range(IMAGES):
        photograph(tmp_path / "photos" / f"{number:02d}.png", (20, 24 + number))
    (tmp_path / "photos" / "11.png").write_bytes(b"no picture")
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", RUNS, tests, tmp_path / "detector", tmp_path / "photos"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def lines_of(runs: subprocess.Popen[str], out: Path) -> tuple[int, IO[str]]:
    """Begin a run: its process, and what it says."""
    assert runs.stdin is not None
    assert runs.stdout is not None
    runs.stdin.write(f"{out}\n")
    runs.stdin.flush()
    return int(runs.stdout.readline()), runs.stdout


def judged(runs: subprocess.Popen[str], out: Path) -> int:
    """How many images an unbroken run judges."""
    calls, said = 0, lines_of(runs, out)[1]
    while not (line := said.readline()).startswith("over"):
        calls = int(line)
    assert line == "over 0\n"
    return calls


def test_a_run_that_is_killed_ten_times_at_random_ends_as_an_unbroken_one(tmp_path, runs):
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    assert judged(runs, unbroken) == IMAGES - 1
    chance = np.random.default_rng(0)
    for _ in range(10):
        process, said = lines_of(runs, killed)
        for _ in range(1 + chance.integers(2 * IMAGES // 3)):
            assert not (line := said.readline()).startswith("over"), line
        os.kill(process, signal.SIGKILL)
        while not said.readline().startswith("over"):
            pass
    assert not (killed / "scores.csv").exists()
    kept = len((killed / "predictions.jsonl").read_text().splitlines())
    assert judged(runs, killed) < IMAGES - kept // 2
    assert files(killed) == files(unbroken)
    assert judged(runs, killed) == 0  # nothing is judged again
    assert files(killed) == files(unbroken)
