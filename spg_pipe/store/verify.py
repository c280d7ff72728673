"""Re-read every byte of a store and name what is wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import crc32c, load_entries, token_shard_name

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    files: int
    images: int
    faults: tuple[str, ...]
    """One line a fault, naming the file and, where tokens are hit, the image."""


def verify(path: Path, progress: Progress | None = None) -> Verification:
    """Check every file against shards.json and every image against its checksum.

    Raises
    ------
    SpgError
        If the store cannot be opened at all: missing, unfinished, a file of another size.
    """
    store = FeatureStore(path)
    entries = load_entries(store.path)
    faults: list[str] = []
    paths = store.array("path")
    for done, entry in enumerate(entries, start=1):
        data = (store.path / entry.name).read_bytes()
        if crc32c(data) != entry.crc32c:
            faults.append(f"{entry.name}: its bytes do not give the recorded crc32c")
            faults += _bad_images(store, entry.name, entry.images, data, paths)
        if progress:
            progress(done, len(entries))
    return Verification(len(entries), len(store), tuple(faults))


def _bad_images(
    store: FeatureStore, name: str, rows: tuple[int, int], data: bytes, paths: np.ndarray
) -> list[str]:
    for layer, shape in store.spec.layers.items():
        if name != token_shard_name(layer, rows[0] // store.spec.shard_images):
            continue
        image_bytes = shape.patches * shape.dim * np.dtype(store.spec.dtype).itemsize
        checksums = store.array(f"checksum_{layer}")
        return [
            f"{name}: image {row} ({paths[row]}), layer {layer}, has damaged tokens"
            for place, row in enumerate(range(*rows))
            if crc32c(data[place * image_bytes : (place + 1) * image_bytes]) != checksums[row]
        ]
    return []


def require_intact(path: Path, result: Verification) -> None:
    """Raise one error that lists the faults, if there are any.

    Raises
    ------
    SpgError
    """
    if result.faults:
        raise SpgError(
            f"{path} is damaged:\n  "
            + "\n  ".join(result.faults)
            + "\nMake it again with `spg-pipe extract --replace` and the same options."
        )
