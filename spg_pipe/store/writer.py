"""Write a store shard by shard, by one process or many: whoever computes a shard, its bytes are the
same, and a killed run goes on at the first missing shard."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import zarr
from filelock import FileLock

from spg_pipe.artefacts.files import write_bytes
from spg_pipe.artefacts.reading import MOST_BYTES, read_file, reading
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import DamagedError, SpgError
from spg_pipe.store.begin import begin_anew, begin_shared, begun, declare, refuse_what_is_no_store
from spg_pipe.store.claims import PATIENCE, claim, holding, locked, require_unclaimed
from spg_pipe.store.files import StoreFiles, read_attributes
from spg_pipe.store.finish import change_attributes, clear_parts, complete, sweep
from spg_pipe.store.format import COMMAND, SHARD_INDEX, StoreSpec, encode_mask
from spg_pipe.store.parts import (
    PARTS,
    ShardPart,
    entry_is_intact,
    part_file,
    part_of,
    read_part,
    write_part,
)
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import (
    ShardEntry,
    Write,
    chunk_file,
    in_folder,
    parse_entries,
    raw_bytes,
    shard_files,
    write_file,
    write_shard,
)
from spg_pipe.store.statistics import ShardStatistics

Arrays = dict[str, np.ndarray]
"""Parts of a store by their names, of a batch or a shard of B images: tokens (B, N, D) and prefix
tokens (B, P, D) in the store's dtype, masks (B, S, S) uint8, which are all zero where there is none
(`mask_state` tells which), `lost_regions` (B,) uint32."""
LostRegions = Callable[[range], Sequence[int]]
"""Of rows: how many regions of each image's mask vanish when it is resized to S×S."""

_REFRESHED = ("skipped", "selection", "notes", "sources")
"""Attributes of a finished store that follow the dataset: which images are left out, what a person
should know. They are no part of the fingerprint, so damaged files may come and go without new
tokens."""


def write_whole(root: Path, spec: StoreSpec, shard: int, arrays: Arrays) -> None:
    """Write one shard of all large arrays, then its record, which makes it count as finished."""
    write_part(root, shard, write_arrays(in_folder(root), spec, shard, arrays))


def write_arrays(write: Write, spec: StoreSpec, shard: int, arrays: Arrays) -> ShardPart:
    """Write one shard of all large arrays; its record is left to the caller."""
    rows, places = spec.shard_rows(shard), spec.shard_images
    files, statistics = [], {}
    for layer in spec.layers:
        tokens, prefix = arrays[f"tokens_{layer}"], arrays[f"prefix_{layer}"]
        chunks = [spec.encode_tokens(raw_bytes(image)) for image in tokens]
        name = chunk_file(f"tokens_{layer}", shard)
        files.append(write_shard(write, name, chunks, rows, places))
        # A chunk of prefix tokens is always full: the last one ends with fill values.
        padded = np.full((places, *prefix.shape[1:]), np.nan, spec.dtype)
        padded[: len(rows)] = prefix
        name = chunk_file(f"prefix_{layer}", shard)
        files.append(write_file(write, name, rows, raw_bytes(padded)))
        statistics[layer] = ShardStatistics.of(tokens)
    masks, name = [encode_mask(mask) for mask in arrays["mask"]], chunk_file("mask", shard)
    files.append(write_shard(write, name, masks, rows, places))
    return part_of(spec, files, statistics, arrays["lost_regions"].tolist())


def part_from_files(
    root: Path, spec: StoreSpec, shard: int, files: Sequence[ShardEntry], lost: Sequence[int]
) -> ShardPart:
    """The record of a shard, from its files below `root`, where the arrays are declared."""
    rows, statistics = spec.shard_rows(shard), {}
    for layer in spec.layers:
        array: Any = zarr.open_array(root / f"tokens_{layer}", mode="r")
        statistics[layer] = ShardStatistics.of(np.asarray(array[rows.start : rows.stop]))
    return part_of(spec, files, statistics, lost)


class StoreWriter:
    """Writes one store as a whole; `missing_shards` says what is still to be done.

    A context: it locks the store's place, so that one process writes at a time. A store that is
    `up_to_date` is not locked and not touched, unless what is said beside its content has changed.

    Parameters
    ----------
    path : Path
        The store's folder.
    spec : StoreSpec
        Its fingerprint decides whether a store that is already there is this one.
    manifest : Manifest
        The images, in the store's order.
    lost_regions : callable
        For shards that are there without a record of their own.
    replace : bool
        Remove a store of another fingerprint instead of refusing. In a store of this fingerprint,
        check every byte and write damaged shards anew.
    check : bool
        Keep only shards whose every byte is right, or by their sizes those that others will check.

    Raises
    ------
    SpgError
        If another store, or something else, is in the place, or another process writes there.
    """

    def __init__(
        self,
        path: Path,
        spec: StoreSpec,
        manifest: Manifest,
        lost_regions: LostRegions,
        *,
        replace: bool = False,
        check: bool = True,
    ) -> None:
        self.path, self.spec, self.manifest = path, spec, manifest
        self._lost_regions, self._replace, self._check = lost_regions, replace, check
        self._lock: FileLock | None = None
        self._done: set[int] = set()

    def __enter__(self) -> Self:
        self.up_to_date = self._is_up_to_date()
        if self.up_to_date and self._says(_REFRESHED) and not (self.path / PARTS).exists():
            return self
        refuse_what_is_no_store(self.path)
        self._lock = locked(self.path)
        try:
            require_unclaimed(self.path)
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SpgError) and not self._done and not self.up_to_date:
            # Without a single finished shard there is nothing to go on with.
            shutil.rmtree(self.path)
        if self._lock is not None:
            self._lock.release()

    def _begin(self) -> None:
        """Go on with what is there, or make room and declare the arrays."""
        self.up_to_date = self._is_up_to_date()  # another process may have finished it meanwhile
        if self.up_to_date:
            wanted = self.spec.attributes()
            change_attributes(self.path, {name: wanted[name] for name in _REFRESHED})
            clear_parts(self.path)
        elif self._is_begun:
            self._go_on(self._recorded())
        else:
            begin_anew(self.path, self.spec, self.manifest, replace=self._replace)

    def _says(self, names: Iterable[str]) -> bool:
        """Whether the attributes of what is there with these names are the wanted ones."""
        there, wanted = read_attributes(self.path) or {}, self.spec.attributes()
        return all(there.get(name) == wanted[name] for name in names)

    @property
    def _is_begun(self) -> bool:
        """Whether a store of this content is there, its attributes whole."""
        there = begun(self.path)
        return there is not None and there.fingerprint == self.spec.fingerprint

    def _is_up_to_date(self) -> bool:
        """Whether this store is complete and has all its files and metadata: by size or, to
        replace what is damaged, by reading every byte."""
        if not self._is_begun or not (read_attributes(self.path) or {}).get("complete"):
            return False
        entries = self._recorded()
        if not entries or FeatureStore(self.path, check_files=False).file_faults():
            return False
        return not self._replace or all(entry_is_intact(self.path, entry) for entry in entries)

    def _recorded(self) -> list[ShardEntry]:
        """shards.json; a damaged one counts as empty where the store may be written anew."""
        path = self.path / SHARD_INDEX
        try:
            if not path.exists():
                return []
            with reading(path, "index of a store", COMMAND):
                return parse_entries(read_file(path, MOST_BYTES), path)
        except DamagedError:
            if not self._replace:
                raise
            return []

    def _go_on(self, recorded: Sequence[ShardEntry]) -> None:
        """Keep the shards that are whole, remove whatever else is there, and declare the rest.

        `recorded`: shards.json of a store that was complete, or that an older version left
        unfinished; it stays as it is until each of its shards has a record.
        """
        (self.path / PARTS).mkdir(exist_ok=True)
        with TemporaryDirectory() as folder:
            declare(Path(folder), self.spec, self.manifest)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            declared = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        index = declared.pop(SHARD_INDEX)
        # The attributes first: from here on the store is not complete.
        for name in sorted(declared, key=lambda name: name != "zarr.json"):
            write_bytes(self.path / name, declared[name])
        kept, entries = {SHARD_INDEX, *declared}, {entry.name: entry for entry in recorded}
        size = StoreFiles(self.path).size
        for shard in range(self.spec.shards):
            part = read_part(self.path, self.spec, shard)
            if part is None:
                part = self._recorded_again(shard, entries)
            elif not (part.is_intact(self.path) if self._check else part.has_sizes(size)):
                continue
            if part is not None:
                self._done.add(shard)
                kept |= {entry.name for entry in part.files}
                kept.add(part_file(self.path, shard).relative_to(self.path).as_posix())
        write_bytes(self.path / SHARD_INDEX, index)
        sweep(self.path, kept)
        (self.path / PARTS).mkdir(exist_ok=True)  # an empty one was swept away

    def _recorded_again(self, shard: int, entries: dict[str, ShardEntry]) -> ShardPart | None:
        """The record of a shard, made and written from its files; None if one is not whole."""
        names, rows = shard_files(self.spec, shard), self.spec.shard_rows(shard)
        if not all(name in entries and entry_is_intact(self.path, entries[name]) for name in names):
            return None
        files, lost = [entries[name] for name in names], self._lost_regions(rows)
        part = part_from_files(self.path, self.spec, shard, files, lost)
        write_part(self.path, shard, part)
        return part

    @property
    def missing_shards(self) -> list[int]:
        """Shards that are not yet recorded, in order."""
        return [shard for shard in range(self.spec.shards) if shard not in self._done]

    def write_shard(self, shard: int, arrays: Arrays) -> None:
        """Write one shard of all large arrays, then record it."""
        write_whole(self.path, self.spec, shard, arrays)
        self._done.add(shard)

    def finish(self) -> None:
        """Write the small arrays, consolidate the metadata and set the completeness mark."""
        complete(self.path, self.spec)
        clear_parts(self.path)


class ClaimedShards:
    """Some shards of a begun store for this process, while others write other shards.

    A context. Each shard is locked from its claim until it is written; one that is there and whole
    is left, and one that another living process holds.
    """

    def __init__(self, path: Path, spec: StoreSpec) -> None:
        self.path, self.spec = path, spec
        self.written: list[int] = []
        self.there: list[int] = []
        """Which were whole already."""
        self.held: list[int] = []
        """Which other processes were writing."""
        self._locks: dict[int, FileLock] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for shard in list(self._locks):
            self._release(shard)

    def begin(self, manifest: Manifest) -> bool:
        """As `begin_shared`."""
        return begin_shared(self.path, self.spec, manifest)

    def claimed(self, shards: Iterable[int]) -> Iterator[int]:
        """Those of the shards that are to be computed here, each claimed when it is asked for.

        Raises SpgError if the store was replaced, or a process writes it as a whole.
        """
        for shard in shards:
            with holding(self.path, PATIENCE):
                there = begun(self.path)
                if there is None or there.fingerprint != self.spec.fingerprint:
                    raise SpgError(
                        f"{self.path} was removed or replaced while its shards were computed. "
                        "Give the same command again."
                    )
                lock = None if there.complete else claim(self.path, shard)
            if there.complete:
                self.there.append(shard)
            elif lock is None:
                self.held.append(shard)
            else:
                self._locks[shard] = lock
                part = read_part(self.path, self.spec, shard)
                if part is None or not part.is_intact(self.path):
                    part_file(self.path, shard).unlink(missing_ok=True)
                    yield shard
                else:
                    self._release(shard)
                    self.there.append(shard)

    def write_shard(self, shard: int, arrays: Arrays) -> None:
        """Write one claimed shard, record it, and let go of it."""
        write_whole(self.path, self.spec, shard, arrays)
        self.written.append(shard)
        self._release(shard)

    def _release(self, shard: int) -> None:
        self._locks.pop(shard).release()
