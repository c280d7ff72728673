"""SIGTERM and Ctrl-C, as processes of their own: one line, nothing half-written, nobody left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from e2e.helpers import BIN, ROOT, environment, must, spg
from layouts import write_mvtec
from pipeline.test_checked import RECIPE
from tiny import files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX"),
]
AGAIN = "Training, extracting and predicting go on where they were: give the command again."
SAID = {
    signal.SIGTERM: (143, f"Ended by SIGTERM. {AGAIN}\n"),
    signal.SIGINT: (130, f"Interrupted. {AGAIN}\n"),
}
JOBS = """
import os, sys, time
from functools import partial
from pathlib import Path
from spg_pipe.artefacts.files import fresh_folder
from spg_pipe.pipeline.console import exit_code
from spg_pipe.study.runner import Job, run_jobs

def work(path):
    with fresh_folder(path) as folder:
        (folder / "half").write_text("x")
        os.write(1, b"begun\\n")  # two processes: in one write
        time.sleep(100)

if __name__ == "__main__":
    jobs = [Job(name, partial(work, Path(name))) for name in ("a", "b")]
    sys.exit(exit_code(lambda: list(run_jobs(jobs, "cpu", 2))))
"""
EXTRACT = """
import sys, time
from pathlib import Path
from spg_pipe.artefacts import files
from spg_pipe.cli.main import main

def waiting(folder):
    print("begun", flush=True)
    time.sleep(100)

files._sync_all = waiting
main()
"""
"""`spg-pipe …` that stops before its first folder gets its name."""


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """What a shell runs in the background ignores Ctrl-C, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def started(*words: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, as a shell's job is a group of its own."""
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for left in alive(process.pid):
            left.kill()
        process.wait()


def alive(session: int) -> list[psutil.Process]:
    """The processes of a session that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def until_all_ended(session: int) -> None:
    end = time.monotonic() + 60
    while alive(session) and time.monotonic() < end:
        time.sleep(0.05)
    assert [process.cmdline() for process in alive(session)] == []


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)],
)
def test_jobs_side_by_side_end_with_one_line_and_remove_what_is_half_written(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    """Ctrl-C reaches the whole group of a terminal, a scheduler's SIGTERM the group or one."""
    (tmp_path / "jobs.py").write_text(JOBS)
    with started(sys.executable, "jobs.py", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in "ab"] == ["begun\n"] * 2
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == SAID[number]
        until_all_ended(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.py"]


def test_an_interrupt_while_jobs_are_being_started_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    with started(sys.executable, "jobs.py", cwd=tmp_path) as process:
        while len(alive(process.pid)) < 3:  # the one from which others fork imports for seconds
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == SAID[signal.SIGINT]
        until_all_ended(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.py"]


def test_jobs_end_with_a_first_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    with started(sys.executable, "jobs.py", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in "ab"] == ["begun\n"] * 2
        process.kill()
        until_all_ended(process.pid)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.py"]


def test_a_command_that_is_ended_leaves_nothing_half_written_and_goes_on(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "left")
    recipe = RECIPE | {"directions": [], "datasets": RECIPE["datasets"][:1]}
    (tmp_path / "params.yaml").write_text(json.dumps(recipe))
    before = files(tmp_path)
    with started(sys.executable, "-c", EXTRACT, "extract", "--quiet", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for _ in "ab":  # as `timeout` does: to the process, and to its group
            process.terminate()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == SAID[signal.SIGTERM]
    left = set(files(tmp_path)) - set(before)
    assert {Path(name).suffix for name in left} <= {".parquet", ".lock"}
    must(spg("extract", cwd=tmp_path))
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]


def test_the_demo_ends_its_pipeline_and_goes_on_without_manual_work(tmp_path: Path) -> None:
    """DVC runs a stage for the demo: neither is left, and DVC lets go of its locks."""
    with started(BIN / "spg-pipe", "demo", cwd=tmp_path) as process:
        sets = tmp_path / "demo_run" / "artifacts" / "demo"
        while not [path for path in sets.glob("*") if path.suffix == ".tmp"]:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 143, said
        assert said.endswith(SAID[signal.SIGTERM][1])
        assert "Traceback" not in said
        until_all_ended(process.pid)
    state = tmp_path / "demo_run" / ".dvc" / "tmp"
    assert json.loads((state / "rwlock").read_text() or "{}") == {}
    assert not re.search(r"\.tmp\b", " ".join(files(tmp_path / "demo_run" / "artifacts")))
