"""What an unfinished store knows of each finished shard: `parts/<shard>.json`, written last.

One file a shard, so that writers side by side share none. `finish` merges them in order.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from spg_pipe.artefacts.reading import MOST_BYTES, read_file, reading
from spg_pipe.artefacts.record import Count, LayerName, Name, Record, parse_record, write_record
from spg_pipe.errors import DamagedError, NotThereError
from spg_pipe.store.format import COMMAND, StoreSpec
from spg_pipe.store.shards import ShardEntry, crc32c, shard_files
from spg_pipe.store.statistics import ShardStatistics

PARTS = "parts"
Checksum = Annotated[int, Field(ge=0, lt=2**32)]


class LayerPart(Record):
    """`ShardStatistics` of one layer as JSON has them: every float64 comes back to the bit."""

    total: tuple[float, ...]
    squares: tuple[float, ...]
    checksums: tuple[Checksum, ...]


class ShardPart(Record):
    """A shard whose files are in their places."""

    store: Name
    """The store's fingerprint."""
    files: tuple[ShardEntry, ...]
    layers: dict[LayerName, LayerPart]
    lost_regions: tuple[Count, ...]
    """Of each image: regions of its mask that vanished when it was resized to S×S."""

    def statistics(self, layer: str) -> ShardStatistics:
        """Of one layer's tokens."""
        part = self.layers[layer]
        sums = np.array([part.total, part.squares])
        return ShardStatistics(sums[0], sums[1], list(part.checksums))

    def has_sizes(self, size: Callable[[str], int | None]) -> bool:
        """Whether its files are there and as long as they were written; `size` is a file's."""
        return all(size(entry.name) == entry.bytes for entry in self.files)

    def is_intact(self, root: Path) -> bool:
        """Whether its files below `root` have the bytes that were written: reads them all."""
        return all(entry_is_intact(root, entry) for entry in self.files)

    def _fits(self, spec: StoreSpec, shard: int) -> bool:
        rows = spec.shard_rows(shard)
        files = {entry.name: entry.images for entry in self.files}
        wanted = dict.fromkeys(shard_files(spec, shard), (rows.start, rows.stop))
        lengths = {
            name: (len(part.total), len(part.squares), len(part.checksums))
            for name, part in self.layers.items()
        }
        sizes = {name: (shape.dim, shape.dim, len(rows)) for name, shape in spec.layers.items()}
        same = self.store == spec.fingerprint and files == wanted and lengths == sizes
        return same and len(self.files) == len(files) and len(self.lost_regions) == len(rows)


def part_of(
    spec: StoreSpec,
    files: Sequence[ShardEntry],
    statistics: Mapping[str, ShardStatistics],
    lost_regions: Sequence[int],
) -> ShardPart:
    """The record of a shard; `statistics` by layer, `lost_regions` an image each."""
    layers = {
        layer: LayerPart(
            total=tuple(each.total.tolist()),
            squares=tuple(each.squares.tolist()),
            checksums=tuple(each.checksums),
        )
        for layer, each in statistics.items()
    }
    lost = tuple(map(int, lost_regions))
    return ShardPart(store=spec.fingerprint, files=tuple(files), layers=layers, lost_regions=lost)


def write_part(root: Path, shard: int, part: ShardPart) -> None:
    """Write it atomically: the shard then counts as finished."""
    write_record(part_file(root, shard), part)


def read_part(root: Path, spec: StoreSpec, shard: int) -> ShardPart | None:
    """The record of a finished shard; None where there is none of this store, or a damaged one.

    Raises SpgError if it cannot be read at present.
    """
    path = part_file(root, shard)
    try:
        with reading(path, "record of a shard", COMMAND):
            content = read_file(path, MOST_BYTES)
    except (NotThereError, DamagedError):
        return None
    return parse_part(content, spec, shard)


def parse_part(content: bytes, spec: StoreSpec, shard: int) -> ShardPart | None:
    """The record of a shard from its file; None if it is of another store, or damaged."""
    try:
        part = parse_record(content, part_name(shard), ShardPart, "record of a shard", COMMAND)
    except DamagedError:
        return None
    return part if part._fits(spec, shard) else None


def part_name(shard: int) -> str:
    """The record of a shard, by its path below the store."""
    return f"{PARTS}/{shard}.json"


def part_file(root: Path, shard: int) -> Path:
    """Where the record of a shard lies."""
    return root / part_name(shard)


def entry_is_intact(root: Path, entry: ShardEntry) -> bool:
    """Whether a file below `root` has the bytes that were recorded."""
    path = root / entry.name
    return path.is_file() and crc32c(path.read_bytes()) == entry.crc32c
