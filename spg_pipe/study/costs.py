"""What work costs: its time, and the memory that it took beyond what its process had."""

import gc
import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spg_pipe.store.extract import give_memory_back

_SAMPLE_SECONDS = 0.005


@dataclass
class Cost:
    """Known when the block of `measured` has ended; NaN before."""

    seconds: float = float("nan")
    """Wall time."""
    mebibytes: float = float("nan")
    """Peak of the process's memory beyond `start`, MiB."""

    @classmethod
    def one_after_another(cls, costs: "Iterable[Cost]") -> "Cost":
        """Of work in processes of its own; NaN if a part is."""
        parts = list(costs)
        memory = [part.mebibytes for part in parts]
        largest = math.nan if any(map(math.isnan, memory)) else max(memory)
        return cls(sum(part.seconds for part in parts), largest)


def own_memory() -> int:
    """Bytes of memory that this process holds for itself.

    On Linux resident memory without mapped files: the pages of a store that it reads in place are
    the system's cache. Elsewhere all of its resident memory, which is never less.
    """
    import psutil

    found = psutil.Process().memory_info()
    return int(found.rss - getattr(found, "shared", 0))


def idle_memory() -> int:
    """`own_memory` when all that is free is given back: of a process before its work."""
    gc.collect()
    give_memory_back()
    return own_memory()


@contextmanager
def measured(start: int) -> Iterator[Cost]:
    """Time of a block, and the peak of `own_memory` in it beyond what it was at the start of all.

    Sampled every 5 ms from a thread: what is held for less may be missed. GPU memory is not in it.

    Parameters
    ----------
    start : int
        `idle_memory` of the process before any of its work: what one block makes and the next one
        uses counts in both.
    """
    cost, stop, peak = Cost(), threading.Event(), idle_memory()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(_SAMPLE_SECONDS):
            peak = max(peak, own_memory())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    began = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        stop.set()
        thread.join()
    cost.mebibytes = max(0, max(peak, own_memory()) - start) / 2**20
