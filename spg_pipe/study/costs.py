"""What work costs: its time, and the memory that it took beyond what its process had."""

import gc
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from pydantic import Field

from spg_pipe.artefacts.record import Record, read_record
from spg_pipe.detector.record import DetectorOrigin
from spg_pipe.errors import DamagedError
from spg_pipe.store.compute import give_memory_back

_SAMPLE_SECONDS = 0.005


@dataclass
class Cost:
    """Known when the block of `measured` has ended; NaN before."""

    seconds: float = math.nan
    """Wall time."""
    mebibytes: float = math.nan
    """Peak of the process's memory beyond `start`, MiB."""


def one_after_another(costs: Sequence[Cost]) -> Cost:
    """Of work in processes of its own: all time, the largest memory; NaN if a part is."""
    largest = float(np.max([cost.mebibytes for cost in costs]))  # NaN if there is one
    return Cost(sum(cost.seconds for cost in costs), largest)


class MakingCosts(Record):
    """compare/<name>-costs.json: what was trained for a comparison, and what that cost."""

    costs: dict[str, Cost] = Field(default_factory=dict)
    """Fingerprint of an SAE or a detector → its cost."""

    @classmethod
    def load(cls, path: Path) -> "MakingCosts":
        """A damaged table is as if it were not there."""
        try:
            return (
                cls()
                if not path.exists()
                else read_record(path, cls, "table of costs", "spg-pipe compare")
            )
        except DamagedError:
            return cls()

    def of(self, detector: DetectorOrigin | None, beside: Cost) -> Cost:
        """Making a detector and its SAE, and what is made beside them; NaN if one of them was made
        elsewhere, unmeasured."""
        made = [detector.fingerprint] if detector else []
        if detector and detector.sae.params:  # axes are not made
            made.append(detector.sae.fingerprint)
        return one_after_another([*(self.costs.get(key, Cost()) for key in made), beside])


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
def measured(start: int) -> Iterator[Cost]:
    """Time of a block, and the peak of memory in it beyond what it was at the start of all.

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
            peak = max(peak, _own_memory())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    began = time.perf_counter()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        stop.set()
        thread.join()
    cost.mebibytes = max(0, max(peak, _own_memory()) - start) / 2**20
