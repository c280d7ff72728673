"""Re-read every byte of a store and name what is wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.store.format import REMAKE
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import chunk_file, crc32c

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    files: int
    images: int
    faults: tuple[str, ...]
    """One line a fault, naming the file and, where tokens are hit, the image."""


def verify(path: Path | str, progress: Progress | None = None) -> Verification:
    """Check every file against shards.json and every image against its checksum.

    Raises
    ------
    SpgError
        If the store cannot be opened at all: missing, unfinished, its attributes changed.
    """
    store = FeatureStore(path, check_files=False)
    faults = store.file_faults()
    entries = store.entries
    for done, entry in enumerate(entries, start=1):
        if store.files.size(entry.name) != entry.bytes:
            continue  # among the faults already
        data = store.files.read(entry.name)
        if crc32c(data) != entry.crc32c:
            faults.append(f"{entry.name}: its bytes do not give the recorded crc32c")
            faults += _bad_images(store, entry.name, entry.images, data)
        if progress:
            progress(done, len(entries))
    return Verification(len(entries), len(store), tuple(faults))


def _bad_images(store: FeatureStore, name: str, rows: tuple[int, int], data: bytes) -> list[str]:
    shard = rows[0] // store.spec.shard_images
    for layer in store.layers:
        if name != chunk_file(f"tokens_{layer}", shard):
            continue
        checksums, paths = store.array(f"checksum_{layer}"), store.array("path")
        return [
            f"{name}: image {row} ({paths[row]}), layer {layer}, has damaged tokens"
            for row, tokens in zip(range(*rows), _images(store, layer, rows, data), strict=True)
            if tokens is None or crc32c(tokens) != checksums[row]
        ]
    return []


def _images(
    store: FeatureStore, layer: str, rows: tuple[int, int], data: bytes
) -> Iterator[bytes | None]:
    """The token bytes of every image in a shard's bytes; None where they cannot be decoded."""
    spec, image_bytes = store.spec, store.spec.image_bytes(layer)
    if spec.compressor == "none":
        # Not by the index, which may be what is damaged.
        for place in range(rows[1] - rows[0]):
            yield data[place * image_bytes : (place + 1) * image_bytes]
        return
    index = np.frombuffer(
        data, "<u8", 2 * spec.shard_images, len(data) - 16 * spec.shard_images - 4
    )
    for offset, length in index.reshape(-1, 2)[: rows[1] - rows[0]].tolist():
        try:
            yield spec.decode_tokens(data[offset : offset + length])
        except (RuntimeError, ValueError):  # what the codec raises for bytes that are not its own
            yield None


def require_intact(path: Path | str, result: Verification) -> None:
    """Raise one SpgError that lists the faults, if there are any."""
    if result.faults:
        raise SpgError(
            f"{path} is damaged:\n  "
            + "\n  ".join(result.faults)
            + f"\nMake it again with {REMAKE}."
        )
