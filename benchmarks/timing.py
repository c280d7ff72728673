"""Honest times: each contender in turn, rotated, medians; and the machine they were taken on."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine() -> str:
    """Processor, cores, kernel, PyTorch and its threads, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, torch {torch.__version__} "
        f"({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
    )


def medians(
    work: dict[str, Callable[[], object]], rounds: int, *, warm: int = 1
) -> dict[str, float]:
    """Median seconds of each piece of work, in interleaved rounds.

    Parameters
    ----------
    work : dict of name → function
        Each takes every place in a round in turn: who comes after whom must not matter.
    rounds : int
        Measured rounds, after `warm` ones that do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for number in range(warm + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            work[name]()
            if number >= warm:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
