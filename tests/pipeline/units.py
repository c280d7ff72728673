"""Work for the workers of a cluster in tests: they import this file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import TinyBackbone, manifest_of

from spg_pipe.errors import NotThereError
from spg_pipe.pipeline.features import BEGIN
from spg_pipe.store.extract import Extraction, SharedExtract


def dies_once(folder: Path, unit: object) -> None:
    """Kill this process, as a lack of memory does, the first time that it is at this unit."""
    mark = folder / f"{unit}.died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class DyingBackbone(TinyBackbone):
    """Dies in the midst of each shard, once."""

    def __init__(self, marks: Path) -> None:
        super().__init__()
        self.marks, self.shard = marks, BEGIN

    def __call__(self, images: Any) -> Any:
        if self.shard != BEGIN:
            dies_once(self.marks, self.shard)
        return super().__call__(images)


@dataclass(frozen=True)
class TinyShards:
    """Shards of a store of tiny images, each of which kills its worker once."""

    images: Path
    store: Path
    marks: Path

    def open(self) -> Callable[[int], list[int]]:
        """A unit is a shard, or BEGIN."""
        backbone, how = DyingBackbone(self.marks), Extraction(batch_images=4, shard_images=6)
        work = SharedExtract(manifest_of(self.images), backbone, self.store, how)

        def unit(shard: int) -> list[int]:
            if shard == BEGIN:
                return list(work.begin())
            backbone.shard = shard
            return work.compute(shard, shard + 1).held

        return unit


@dataclass(frozen=True)
class DiesOnce:
    """Another job, of which each unit kills its worker once."""

    job: Any
    marks: Path

    def open(self) -> Callable[[object], object]:
        """A unit is one of the other job."""
        compute = self.job.open()

        def unit(given: object) -> object:
            dies_once(self.marks, given)
            return compute(given)

        return unit


@dataclass(frozen=True)
class Squares:
    """Numbers squared; of 13 there is none, and 66 kills its worker."""

    def open(self) -> Callable[[int], tuple[int, int]]:
        """A unit is a number; also gives back the process."""

        def square(number: int) -> tuple[int, int]:
            if number == 13:
                raise NotThereError("13 has no square. Take another.", command="none")
            if number == 66:
                os.kill(os.getpid(), signal.SIGKILL)
            return number**2, os.getpid()

        return square
