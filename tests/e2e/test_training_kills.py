"""`train-sae` and `train-guides` killed by SIGKILL and given again: the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import write_mvtec
from pipeline.test_checked import RECIPE
from tiny import files

from e2e.helpers import spg

CHILD = """
import os, signal, sys
from spg_pipe.artefacts import checkpoint
from spg_pipe.cli.main import main
from spg_pipe.guides.trained.trainer import GuideTrainer
from spg_pipe.sae.trainer import SaeTrainer

checkpoint.Checkpoints.due = lambda self: True
left = int(sys.argv.pop(1))

def killing(true):
    def step(self, *given):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return true(self, *given)
    return step

for trainer in (SaeTrainer, GuideTrainer):
    trainer.step = killing(trainer.step)
main()
"""


@pytest.mark.slow
def test_killed_trainings_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "left")
    recipe = RECIPE | {"directions": [], "datasets": RECIPE["datasets"][:1]}
    recipe["guides"] = {**RECIPE["guides"], "kind": "trained", "epochs": 3}
    (tmp_path / "params.yaml").write_text(json.dumps(recipe))
    assert spg("extract", cwd=tmp_path).returncode == 0
    for command, folder, steps in (("train-sae", "sae", 7), ("train-guides", "detectors", 4)):
        assert spg(command, cwd=tmp_path).returncode == 0
        (made,) = (tmp_path / "artifacts" / folder / "mini").glob("left-*")
        unbroken = files(made)
        killed = subprocess.run(
            [sys.executable, "-c", CHILD, str(steps), command],
            check=False,
            cwd=tmp_path,
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL
        assert files(made) == unbroken  # a finished artefact stays until the next one is whole
        (checkpoint,) = made.parent.glob(".*.checkpoint")
        resumed = spg(command, cwd=tmp_path)
        assert resumed.returncode == 0
        assert "Going on from the checkpoint" in resumed.stderr
        assert files(made) == unbroken
        assert not checkpoint.exists()
