"""What a killed DVC may leave in .dvc/tmp/rwlock, and that the documented cure cures it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from e2e.helpers import ROOT, dvc, must

PAGE = ROOT / "docs" / "faults.md"
DEAD = 4194303
"""The highest number of a process: no process has it."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A DVC repository with one stage, as far as DVC's locks are concerned like any other."""
    must(dvc("init", "--no-scm", "-q", cwd=tmp_path))
    (tmp_path / "dvc.yaml").write_text("stages: {copy: {cmd: echo 1 > made, outs: [made]}}\n")
    return tmp_path


def plant(repository: Path, process: int | None) -> Path:
    """An rwlock as of a process that writes the stage's file; None: an empty file."""
    lock = repository / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    info = {"pid": process, "cmd": "dvc repro"}
    held = json.dumps({"write": {str(repository / "made"): info}, "read": {}})
    lock.write_text(held if process else "")
    return lock


def test_a_lock_of_a_process_that_has_ended_needs_nobody(repository: Path) -> None:
    plant(repository, DEAD)
    must(dvc("repro", cwd=repository))
    assert (repository / "made").read_text() == "1\n"


@pytest.mark.parametrize(
    ("process", "says"),
    [(os.getpid(), "busy, it is being blocked by"), (None, "Unable to read RWLock-file")],
    ids=["foreign", "empty"],
)
def test_the_documented_cure_mends_a_foreign_and_an_empty_lock(
    repository: Path, process: int | None, says: str
) -> None:
    """A foreign lock's process number was taken over by another process, as by this one."""
    lock, page = plant(repository, process), PAGE.read_text()
    refused = dvc("repro", cwd=repository)
    assert refused.returncode
    assert says in refused.stderr
    assert says in " ".join(page.split()), "the page quotes what DVC says"
    (cure,) = re.findall(r"^(rm \.dvc/\S+)$", page, flags=re.MULTILINE)
    subprocess.run(["sh", "-c", cure], cwd=repository, check=True)
    assert not lock.exists()
    must(dvc("repro", cwd=repository))
    assert (repository / "made").read_text() == "1\n"
