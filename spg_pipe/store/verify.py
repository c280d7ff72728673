"""Re-read every byte of a store and name what is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from spg_pipe.errors import DamagedError, SpgError
from spg_pipe.store.format import remade
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import ShardEntry, crc32c


def verify(path: Path | str, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Check every file against shards.json and every image against its checksum.

    Returns the faults, each naming the file and, where tokens are hit, the image. An `SpgError` if
    the store cannot be opened at all: missing, unfinished, its attributes changed.
    """
    store = FeatureStore(path, check_files=False)
    faults = store.file_faults()
    entries = [entry for entry in store.entries if entry.name in store.known]
    for done, entry in enumerate(entries, start=1):
        if store.files.size(entry.name) != entry.bytes:
            continue  # among the faults already
        if crc32c(store.files.read(entry.name)) != entry.crc32c:
            faults.append(f"{entry.name}: its bytes do not give the recorded crc32c")
            faults += _bad_images(store, entry)
        if progress:
            progress(done, len(entries))
    return faults


def _bad_images(store: FeatureStore, entry: ShardEntry) -> list[str]:
    faults = []
    for layer in store.layers:
        if not entry.name.startswith(f"tokens_{layer}/"):
            continue
        try:
            _, paths = store.array(f"checksum_{layer}"), store.array("path")
        except DamagedError:  # and named for that
            continue
        for row in range(*entry.images):
            try:
                store.tokens(layer, np.array([row]))
            except DamagedError:
                faults.append(
                    f"{entry.name}: image {row} ({paths[row]}), layer {layer}, has damaged tokens"
                )
    return faults


def require_intact(path: Path | str, faults: list[str]) -> None:
    """Raise one SpgError that lists the faults, if there are any."""
    if faults:
        raise SpgError(
            f"{path} is damaged:\n  " + "\n  ".join(faults) + f"\nTo mend it, {remade(path)}."
        )
