"""Jobs side by side: one thread each, in order of need, and nothing left behind."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.costs import Cost, idle_memory, measured
from spg_pipe.study.runner import Job, run_jobs, workers_for

ROOT = Path(__file__).resolve().parents[2]


def refuse(message: str) -> None:
    raise SpgError(message)


def interval(seconds: float) -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(seconds)
    return start, time.monotonic()


def products() -> tuple[int, float]:
    """The process's threads, and a sum whose last bits depend on them."""
    x = torch.linspace(0, 1, 300_000)
    return torch.get_num_threads(), float((x.sin() * x.cos()).sum())


def test_a_job_starts_when_what_it_needs_is_done_and_those_listed_first_go_first():
    jobs = [
        Job("last", partial(interval, 0.0), after=("second", "first", "made yesterday")),
        Job("first", partial(interval, 0.2)),
        Job("second", partial(interval, 0.2)),
    ]
    found = list(run_jobs(jobs, "cpu", workers=2))
    assert [name for name, _ in found][-1] == "last"
    times = dict(found)
    assert times["last"][0] >= max(times["first"][1], times["second"][1])
    alone = [name for name, _ in run_jobs(jobs, "cpu", workers=1)]
    assert alone == ["first", "second", "last"]


def test_every_job_has_one_thread_so_that_the_number_of_cores_changes_no_bit():
    jobs = [Job(str(number), products) for number in range(3)]
    side_by_side = [result for _, result in run_jobs(jobs, "cpu", workers=3)]
    one_by_one = [result for _, result in run_jobs(jobs, "cpu", workers=1)]
    assert {threads for threads, _ in side_by_side} == {1}
    assert len(set(side_by_side + one_by_one)) == 1


def test_a_failure_arrives_as_it_was_raised_and_stops_the_others():
    jobs = [Job("long", partial(time.sleep, 600)), Job("bad", partial(refuse, "no masks"))]
    start = time.monotonic()
    with pytest.raises(SpgError, match="no masks") as caught:
        list(run_jobs(jobs, "cpu", workers=2))
    assert time.monotonic() - start < 500
    assert str(caught.value) == "no masks"
    assert "in refuse" in str(caught.value.__cause__)


def test_a_killed_process_is_named():
    with pytest.raises(SpgError, match="process of guides ended without a result"):
        list(run_jobs([Job("guides", partial(os._exit, 7))], "cpu", workers=1))


def test_whoever_stops_listening_stops_the_jobs():
    running = run_jobs([Job("own", os.getpid), Job("long", partial(time.sleep, 60))], "cpu", 2)
    first = next(running)
    others = psutil.Process().children(recursive=True)
    assert first[0] == "own"
    running.close()  # type: ignore[attr-defined]
    sleeping = [p for p in others if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert len(sleeping) < len(others)


def test_a_job_runs_the_code_that_started_it_whatever_lies_in_the_working_folder(
    tmp_path, monkeypatch
):
    other = tmp_path / "spg_pipe"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('another copy')")
    code = "from spg_pipe.study.runner import Job, run_jobs\n" + (
        "import os\nif __name__ == '__main__':\n"
        "    print([result for _, result in run_jobs([Job('folder', os.getcwd)], 'cpu', 1)])\n"
    )
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def test_a_gpu_has_one_job_at_a_time():
    assert workers_for("cuda:1") == 1
    assert workers_for("cpu") == torch.get_num_threads()


def costs() -> list[Cost]:
    """Of 64 MiB that are given back, of 40 that stay, and of nothing."""
    start = idle_memory()
    with measured(start) as first:
        assert math.isnan(first.seconds)
        held = np.ones(8 * 2**20)
        time.sleep(0.5)
        del held
    with measured(start) as second:
        kept = np.ones(5 * 2**20)  # from 32 MiB on malloc gives memory that is new
        time.sleep(0.05)
    with measured(start) as third:
        time.sleep(0.05)
    assert kept.sum() == 5 * 2**20
    return [first, second, third]


def test_a_cost_is_the_time_and_the_peak_beyond_the_start():
    # In a process of its own: this one may give back meanwhile what earlier tests held.
    ((_, (first, second, third)),) = run_jobs([Job("costs", costs)], "cpu", workers=1)
    assert first.seconds >= 0.5
    assert 60 < first.mebibytes < 90
    assert 35 < second.mebibytes < 69
    assert third.mebibytes >= 35, "what the process still holds counts"
    assert math.isnan(Cost().mebibytes)
