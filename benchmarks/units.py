"""Memory of a Dask scheduler, a worker and the client while no-op units run in a bounded window.

    python -m benchmarks.units [--units 40000] [--threads 64] [--seconds 600]

The window is the one of `--cluster`. Dask keeps logs of the last thousand events and the names of
the last 100,000 keys. Here the logs are kept short and the names are full from the start, so that
what remains is what grows without an end. Private memory of each process is looked at every 500
units; the slope of the second half says what a unit leaves behind, and what 1.6 million would (as
many as 10⁸ images have shards). The last line is one JSON object: bytes a unit, of each process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from dask.utils import key_split
from distributed import default_client

from benchmarks.timing import machine
from spg_pipe.pipeline.cluster import opened

EVERY = 500
SHARDS = 1_600_000
SHORT_LOGS = {
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "10",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__LOG_LENGTH": "10",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


@dataclass(frozen=True)
class Nothing:
    """A job whose units are done at once."""

    def open(self) -> Callable[[int], int]:
        """A unit is a number, which is given back."""
        return lambda unit: unit


def processes(folder: Path, threads: int) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler and a worker of so many threads, as many as a cluster has."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli"]
    local = ["--host", "127.0.0.1"]
    scheduler = ["dask_scheduler", *local, "--port", "0", "--no-dashboard"]
    worker = ["dask_worker", "--nthreads", str(threads), "--no-nanny", "--no-dashboard"]
    for name, *options in (scheduler, worker):
        command = [*dask[:2], f"{dask[2]}.{name}", *options, "--scheduler-file", str(file)]
        yield subprocess.Popen(
            command, cwd=folder, env=os.environ | SHORT_LOGS, stderr=subprocess.DEVNULL
        )


def fill_names() -> None:
    """Fill Dask's cache of names, as 100,000 units of an earlier run would."""
    for number in range(100_000):
        key_split(f"spg-pipe-{0:032x}-{number}")


def address(file: Path) -> str:
    """Of the scheduler, once it has written it."""
    for _ in range(600):
        if file.exists() and file.stat().st_size:
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    raise SystemExit("the scheduler did not start")


def private(process: psutil.Process) -> int:
    """Private bytes of a process."""
    held = process.memory_info()
    return int(held.rss - held.shared)


def main() -> None:
    """Print memory as units are done, and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=64, help="of the cluster")
    parser.add_argument("--seconds", type=float, default=600, help="stop after so many")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as made:
        started = []
        try:
            for process in processes(Path(made), options.threads):
                started.append(process)
                where = address(Path(made) / "scheduler.json")
            watched = dict(
                zip(("scheduler", "worker"), (psutil.Process(p.pid) for p in started), strict=True)
            )
            watched["client"] = psutil.Process()
            seen: dict[str, list[int]] = {name: [] for name in watched}
            with opened(where, print) as workers, workers.serving(Nothing()) as compute:
                client = default_client()
                client.wait_for_workers(1)
                fill_names()
                client.run(fill_names)
                client.run_on_scheduler(fill_names)
                end, done = time.monotonic() + options.seconds, 0
                for done, _ in enumerate(compute(range(options.units)), start=1):
                    if done % EVERY == 0:
                        for name, process in watched.items():
                            seen[name].append(private(process))
                        if time.monotonic() > end:
                            break
            cpu = sum(sum(process.cpu_times()[:2]) for process in watched.values())
        finally:
            for process in started:
                process.kill()
                process.wait()
    print(f"{done:,} units, {cpu / done * 1000:.2f} ms of CPU a unit, all processes together")
    slopes = {}
    for name, values in seen.items():
        half = values[len(values) // 2 :]
        slopes[name] = float(np.polyfit(np.arange(len(half)) * EVERY, half, 1)[0])
        shown = ", ".join(f"{v / 2**20:.0f}" for v in values[:: max(1, len(values) // 10)])
        grown = slopes[name] * SHARDS / 2**20
        print(
            f"{name}: {shown} MiB; {slopes[name]:.0f} bytes a unit, {grown:.0f} MiB in 1.6 million"
        )
    print(json.dumps({name: round(value, 1) for name, value in slopes.items()}))


if __name__ == "__main__":
    main()
