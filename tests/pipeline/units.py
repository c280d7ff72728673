"""Work for the workers of a cluster in tests: they import this file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiny import TinyBackbone, manifest_of

from spg_pipe.errors import NotThereError
from spg_pipe.store.extract import Extraction, SharedExtract


def dies_once(folder: Path, unit: object) -> None:
    """Kill this process, as a lack of memory does, the first time that it is at this unit."""
    mark = folder / f"{unit}.died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class TinyShards:
    """Shards of a store of tiny images; each worker is killed in the midst of each first one."""

    images: Path
    store: Path
    marks: Path

    def open(self) -> Callable[[int | None], list[int]]:
        """A unit is a shard, or None to begin."""

        class Dying(TinyBackbone):
            def __call__(inner, images):  # noqa: N805
                if inner.shard is not None:
                    dies_once(self.marks, inner.shard)
                return super().__call__(images)

        backbone = Dying()
        backbone.shard = None
        how = Extraction(batch_images=4, shard_images=6)
        work = SharedExtract(manifest_of(self.images), backbone, self.store, how)

        def unit(shard: int | None) -> list[int]:
            if shard is None:
                return work.begin()
            backbone.shard = shard
            return work.compute(shard, shard + 1).held

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
