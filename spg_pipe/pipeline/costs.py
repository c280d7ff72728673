"""What work costs: its time, and the memory that it took beyond what its process had."""

import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from spg_pipe.store.compute import give_memory_back

_SAMPLE_SECONDS = 0.005


@dataclass
class Cost:
    """Known when the block of `measured` has ended; NaN before."""

    seconds: float = math.nan
    """Of the clock."""
    mebibytes: float = math.nan
    """Peak of the process's memory beyond `start`, MiB."""


def idle_memory() -> int:
    """`_own_memory` when all that is free is given back: of a process before its work."""
    gc.collect()
    give_memory_back()
    return _own_memory()


def _own_memory() -> int:
    """Bytes of memory that this process holds for itself.

    On Linux resident memory without mapped files: code of libraries that the work is the first to
    run would count as the work's. Elsewhere all of its resident memory, which is never less.
    """
    held = psutil.Process().memory_info()
    return int(held.rss - getattr(held, "shared", 0))


@contextmanager
def measured(start: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[Cost]:
    """Time of a block, and the peak of memory in it beyond what it was at the start of all.

    Sampled every 5 ms from a thread: what is held for less may be missed. GPU memory is not in it.

    `start` is `idle_memory` of the process before any of its work: what one block makes and the
    next one uses counts in both. `clock` gives seconds, of the wall or `time.process_time`.
    """
    cost, stop, peak = Cost(), threading.Event(), idle_memory()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(_SAMPLE_SECONDS):
            peak = max(peak, _own_memory())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    began = clock()
    try:
        yield cost
    finally:
        cost.seconds = clock() - began
        stop.set()
        thread.join()
    cost.mebibytes = max(0, max(peak, _own_memory()) - start) / 2**20
