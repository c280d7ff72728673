"""One shard file of an uncompressed token array, in the Zarr v3 sharding format.

A shard holds the bytes of its images one after the other, then the index (offset and length of
every inner chunk, little-endian uint64; 2^64 − 1 twice where the last shard is short), then the
index's crc32c (little-endian uint32). Image i of a shard therefore starts at i·N·D·itemsize.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from spg_pipe.artifacts import write_bytes, write_json
from spg_pipe.errors import SpgError
from spg_pipe.store.schema import SHARD_INDEX

_EMPTY = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class ShardEntry:
    """A finished file, as recorded in shards.json after it was renamed into place."""

    name: str
    """Path below the store."""
    bytes: int
    crc32c: int
    images: tuple[int, int]
    """First image row and the row after the last."""


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """CRC-32C (Castagnoli) of bytes, the checksum that Zarr uses."""
    if isinstance(data, np.ndarray):
        data = raw_bytes(data)
    return int(google_crc32c.value(bytes(data) if isinstance(data, memoryview) else data))


def raw_bytes(array: np.ndarray) -> memoryview:
    """An array's bytes in C order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def shard_index(images: int, shard_images: int, image_bytes: int) -> bytes:
    """The index that closes a shard: (shard_images, 2) uint64 and its crc32c."""
    index = np.full((shard_images, 2), _EMPTY, dtype="<u8")
    index[:images, 0] = np.arange(images, dtype="<u8") * np.uint64(image_bytes)
    index[:images, 1] = image_bytes
    body = index.tobytes()
    return body + np.array(crc32c(body), dtype="<u4").tobytes()


def token_shard_name(layer: str, shard: int) -> str:
    """Path of a token shard below the store."""
    return f"tokens_{layer}/c/{shard}/0/0"


def write_token_shard(
    root: Path, layer: str, shard: int, tokens: np.ndarray, rows: range, shard_images: int
) -> ShardEntry:
    """Write one shard atomically.

    Parameters
    ----------
    tokens : (n, N, D) float16 or float32
        The images of `rows`, in order.
    """
    name = token_shard_name(layer, shard)
    body = raw_bytes(tokens)
    index = shard_index(len(rows), shard_images, tokens[0].nbytes)
    write_bytes(root / name, body, index)
    checksum = google_crc32c.extend(crc32c(body), index)
    return ShardEntry(name, len(body) + len(index), int(checksum), (rows.start, rows.stop))


def file_entry(root: Path, name: str, rows: range) -> ShardEntry:
    """The entry of a file that another writer has put in place; it is made durable first."""
    with (root / name).open("rb") as stream:
        os.fsync(stream.fileno())
        data = stream.read()
    return ShardEntry(name, len(data), crc32c(data), (rows.start, rows.stop))


def save_entries(root: Path, entries: list[ShardEntry]) -> None:
    """Write shards.json atomically."""
    ordered = sorted(entries, key=lambda e: (e.images, e.name))
    write_json(root / SHARD_INDEX, {"files": [asdict(entry) for entry in ordered]})


def load_entries(root: Path) -> list[ShardEntry]:
    """Read shards.json; empty where there is none yet.

    Raises
    ------
    SpgError
        If it is not what a writer leaves.
    """
    path = root / SHARD_INDEX
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())["files"]
        return [ShardEntry(**(row | {"images": tuple(row["images"])})) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise SpgError(
            f"{path} is damaged ({error}). Make the store again: "
            "`spg-pipe extract --replace` with the same options."
        ) from error
