"""Chunk files in the Zarr v3 format, written whole, and the index of those that are finished.

A shard holds its images one after the other, each encoded by itself, then the index (offset and
length of every inner chunk, little-endian uint64; 2^64 − 1 twice where the last shard is short),
then the index's crc32c (little-endian uint32). Without a compressor image i of a shard therefore
starts at i·N·D·itemsize.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from awscrt import checksums
from pydantic import Field

from spg_pipe.artefacts.files import link_below, write_bytes, write_json
from spg_pipe.artefacts.record import Count, Name, Record, parse_record
from spg_pipe.errors import SpgError
from spg_pipe.store.format import COMMAND, SHARD_INDEX, StoreSpec, large_arrays, small_arrays

_EMPTY = np.iinfo(np.uint64).max

Write = Callable[[str, Sequence[bytes | memoryview]], None]
"""Makes a file of a store, by its path below it, of these parts: whole or not at all."""


class ShardEntry(Record):
    """A finished file, as recorded in shards.json after it was renamed into place."""

    name: Name
    """Path below the store."""
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    crc32c: Annotated[int, Field(ge=0, lt=2**32)]
    images: tuple[Count, Count]
    """First image row and the row after the last."""


class ShardIndex(Record):
    """shards.json."""

    files: tuple[ShardEntry, ...]


def crc32c(data: bytes | memoryview | np.ndarray, before: int = 0) -> int:
    """CRC-32C (Castagnoli) of bytes, the checksum that Zarr uses; `before` is that of bytes that
    come before these."""
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    # Twice as fast as google_crc32c, which Zarr takes and which copies a memoryview.
    return int(checksums.crc32c(data, before))


def raw_bytes(array: np.ndarray) -> memoryview:
    """An array's bytes in C order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def shard_index(lengths: Sequence[int], shard_images: int) -> bytes:
    """The index that closes a shard: (shard_images, 2) uint64 and its crc32c.

    `lengths` are the bytes of each inner chunk that is there, one after the other; `shard_images`
    the places in the shard.
    """
    index = np.full((shard_images, 2), _EMPTY, dtype="<u8")
    ends = np.cumsum(lengths, dtype=np.uint64)
    index[: len(ends), 1] = lengths
    index[: len(ends), 0] = ends - index[: len(ends), 1]
    body = index.tobytes()
    return body + np.array(crc32c(body), dtype="<u4").tobytes()


def chunk_file(array: str, shard: int) -> str:
    """Path below the store of a large array's file for one shard of images."""
    return f"{array}/c/{shard}/0/0"


def shard_files(spec: StoreSpec, shard: int) -> list[str]:
    """The data files of one shard of images."""
    return [chunk_file(array, shard) for array in large_arrays(spec)]


def data_files(spec: StoreSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    """All data files of a finished store: path below it, first image row and row after the last."""
    for shard in range(spec.shards):
        rows = spec.shard_rows(shard)
        for name in shard_files(spec, shard):
            yield name, (rows.start, rows.stop)
    for name in small_arrays(spec):
        yield f"{name}/c/0", (0, spec.images)


def in_folder(root: Path) -> Write:
    """Makes files below a folder, atomically and durably; an `SpgError` where a link leads out."""

    def write(name: str, parts: Sequence[bytes | memoryview]) -> None:
        if link := link_below(root, str(PurePosixPath(name).parent)):
            raise link_in_the_way(link)
        write_bytes(root / name, *parts)

    return write


def link_in_the_way(link: Path) -> SpgError:
    """The error of a link in a store, through which would be written."""
    return SpgError(
        f"{link} is a link to {link.readlink()}: it would be written to. A store that is written "
        "holds none: remove it, or choose another place."
    )


def write_shard(
    write: Write, name: str, chunks: Sequence[bytes | memoryview], rows: range, shard_images: int
) -> ShardEntry:
    """Write one shard from the encoded images of `rows`, in order."""
    index = shard_index([len(chunk) for chunk in chunks], shard_images)
    return write_file(write, name, rows, *chunks, index)


def write_file(write: Write, name: str, rows: range, *parts: bytes | memoryview) -> ShardEntry:
    """Write one data file and describe it."""
    write(name, parts)
    checksum = 0
    for part in parts:
        checksum = crc32c(part, checksum)
    size = sum(len(part) for part in parts)
    return ShardEntry(name=name, bytes=size, crc32c=checksum, images=(rows.start, rows.stop))


def save_entries(root: Path, entries: Sequence[ShardEntry]) -> None:
    """Write shards.json atomically."""
    ordered = sorted(entries, key=lambda e: (e.images, e.name))
    write_json(root / SHARD_INDEX, ShardIndex(files=tuple(ordered)).model_dump(mode="json"))


def parse_entries(content: bytes, name: Path | str) -> list[ShardEntry]:
    """The entries in the bytes of a shards.json; DamagedError, with its `name`, if damaged."""
    return list(parse_record(content, name, ShardIndex, "index of a store", COMMAND).files)
