"""Write a store shard by shard, so that a killed run resumes at the first missing shard."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import zarr
from filelock import FileLock, Timeout

from spg_pipe.artefacts.files import fresh_folder, write_bytes, write_json
from spg_pipe.artefacts.reading import MOST_BYTES, read_file, reading
from spg_pipe.artefacts.record import parse_record
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import DamagedError, SpgError, listed
from spg_pipe.store.files import is_damaged_store, read_attributes
from spg_pipe.store.format import (
    COMMAND,
    IMAGE_TABLE,
    REMAKE,
    SHARD_INDEX,
    StoreSpec,
    create_arrays,
    encode_mask,
    large_arrays,
    seal_of,
    write_small,
)
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import (
    ShardEntry,
    chunk_file,
    crc32c,
    parse_entries,
    raw_bytes,
    save_entries,
    shard_files,
    write_file,
    write_shard,
)
from spg_pipe.store.statistics import ShardStatistics, mean_std

_REFRESHED = ("skipped", "selection", "notes", "sources")
"""Attributes of a finished store that follow the dataset: which images are left out, what a person
should know. They are no part of the fingerprint, so damaged files may come and go without new
tokens."""


class StoreWriter:
    """Writes one store; `missing_shards` says what is still to be done.

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
    replace : bool
        Remove a store of another fingerprint instead of refusing. In a store of this fingerprint,
        check every byte and write damaged shards anew.

    Raises
    ------
    SpgError
        If another store, or something else, is in the place, or another process writes there.
    """

    def __init__(
        self, path: Path, spec: StoreSpec, manifest: Manifest, *, replace: bool = False
    ) -> None:
        self.path, self.spec, self.manifest = path, spec, manifest
        self._replace = replace
        self._entries: list[ShardEntry] = []
        self._stats: dict[str, dict[int, ShardStatistics]] = {name: {} for name in spec.layers}
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        self.up_to_date = self._is_up_to_date()
        if self.up_to_date and self._says(_REFRESHED):
            return self
        refuse_what_is_no_store(self.path)
        self._lock = locked(self.path)
        try:
            self._begin()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, SpgError) and not self._entries and not self.up_to_date:
            # Without a single finished shard there is nothing to go on with.
            shutil.rmtree(self.path)
        if self._lock is not None:
            self._lock.release()

    def _begin(self) -> None:
        """Go on with what is there, or make room and declare the arrays."""
        self.up_to_date = self._is_up_to_date()  # another process may have finished it meanwhile
        if self.up_to_date:
            wanted = self.spec.attributes()
            _change_attributes(self.path, {name: wanted[name] for name in _REFRESHED})
        elif self._is_begun:
            recorded = self._recorded()
            self._declare_again()
            self._recover(recorded)
            self._sweep()
        else:
            if not self._replace:
                with reading(self.path, "store", COMMAND):
                    _refuse_other_content(self.path, self.spec, self.manifest)
            with fresh_folder(self.path) as folder:
                create_arrays(folder, self.spec)

    def _says(self, names: Iterable[str]) -> bool:
        """Whether the attributes of what is there with these names are the wanted ones."""
        there, wanted = read_attributes(self.path) or {}, self.spec.attributes()
        return all(there.get(name) == wanted[name] for name in names)

    @property
    def _is_begun(self) -> bool:
        """Whether a store of this content is there, its attributes whole."""
        text = json.dumps(read_attributes(self.path))
        try:
            there = parse_record(text, self.path, StoreSpec, "store", COMMAND)
        except SpgError:
            return False
        return there.fingerprint == self.spec.fingerprint

    def _declare_again(self) -> None:
        """Metadata as they were at the beginning: not complete, and none missing or damaged."""
        with TemporaryDirectory() as folder:
            create_arrays(Path(folder), self.spec)
            for name in ("zarr.json", *(f"{a}/zarr.json" for a in large_arrays(self.spec))):
                write_bytes(self.path / name, (Path(folder) / name).read_bytes())

    def _is_up_to_date(self) -> bool:
        """Whether this store is complete and has all its files and metadata: by size or, to
        replace what is damaged, by reading every byte."""
        if not self._is_begun or not (read_attributes(self.path) or {}).get("complete"):
            return False
        entries = self._recorded()
        if not entries or FeatureStore(self.path, check_files=False).file_faults():
            return False
        return not self._replace or all(self._is_intact(entry) for entry in entries)

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

    def _recover(self, entries: list[ShardEntry]) -> None:
        """Keep the shards that are recorded and whole; the others are written again."""
        recorded = {entry.name: entry for entry in entries}
        for shard in range(self.spec.shards):
            names = shard_files(self.spec, shard)
            if not all(name in recorded and self._is_intact(recorded[name]) for name in names):
                continue
            self._entries += [recorded[name] for name in names]
            rows = self.spec.shard_rows(shard)
            for layer, statistics in self._stats.items():
                array: Any = zarr.open_array(self.path / f"tokens_{layer}", mode="r")
                tokens = np.asarray(array[rows.start : rows.stop])
                statistics[shard] = ShardStatistics.of(tokens)

    def _sweep(self) -> None:
        """Remove what a killed writer left: unrecorded and temporary files, small arrays."""
        declared = [f"{name}/zarr.json" for name in large_arrays(self.spec)]
        known = {"zarr.json", *declared, *(entry.name for entry in self._entries)}
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.path).as_posix() not in known:
                path.unlink()
        if self._entries:
            save_entries(self.path, self._entries)

    def _is_intact(self, entry: ShardEntry) -> bool:
        path = self.path / entry.name
        return path.is_file() and crc32c(path.read_bytes()) == entry.crc32c

    @property
    def missing_shards(self) -> list[int]:
        """Shards that are not yet recorded, in order."""
        done = {entry.name for entry in self._entries}
        return [s for s in range(self.spec.shards) if not set(shard_files(self.spec, s)) <= done]

    def write_shard(self, shard: int, arrays: dict[str, np.ndarray]) -> None:
        """Write one shard of all large arrays, then record it.

        Parameters
        ----------
        arrays : dict
            `tokens_<layer>` (n, N, D) and `prefix_<layer>` (n, P, D) in the store's dtype; `mask`
            (n, S, S) uint8.
        """
        rows, places = self.spec.shard_rows(shard), self.spec.shard_images
        entries = []
        for layer in self.spec.layers:
            tokens, prefix = arrays[f"tokens_{layer}"], arrays[f"prefix_{layer}"]
            chunks = [self.spec.encode_tokens(raw_bytes(image)) for image in tokens]
            name = chunk_file(f"tokens_{layer}", shard)
            entries.append(write_shard(self.path, name, chunks, rows, places))
            # A chunk of prefix tokens is always full: the last one ends with fill values.
            padded = np.full((places, *prefix.shape[1:]), np.nan, self.spec.dtype)
            padded[: len(rows)] = prefix
            name = chunk_file(f"prefix_{layer}", shard)
            entries.append(write_file(self.path, name, rows, raw_bytes(padded)))
            self._stats[layer][shard] = ShardStatistics.of(tokens)
        masks, name = [encode_mask(mask) for mask in arrays["mask"]], chunk_file("mask", shard)
        entries.append(write_shard(self.path, name, masks, rows, places))
        self._entries += entries
        save_entries(self.path, self._entries)

    def finish(self, lost_regions: np.ndarray) -> None:
        """Write the small arrays, consolidate the metadata and set the completeness mark.

        Parameters
        ----------
        lost_regions : (images,) uint32
            Defect regions of each mask that vanished when it was resized to S×S.
        """
        if self.missing_shards:
            raise SpgError(f"{self.path}: shards {self.missing_shards} are missing.")
        small, rows = [], range(self.spec.images)
        for name, dimension, values in self._small_arrays(lost_regions):
            write_small(self.path, name, values, dimension)
            chunk = f"{name}/c/0"  # written again: Zarr syncs nothing
            small.append(write_file(self.path, chunk, rows, (self.path / chunk).read_bytes()))
            declared = self.path / name / "zarr.json"
            write_bytes(declared, declared.read_bytes())
        save_entries(self.path, [*self._entries, *small])
        group = zarr.open_group(self.path, mode="r+")
        with warnings.catch_warnings():
            # shards.json is ours, and Zarr v3's consolidated metadata is not yet standardised:
            # both are known (docs/store.md).
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(group.store)
        index = (self.path / SHARD_INDEX).read_bytes()
        digest = hashlib.sha256(index).hexdigest()
        _change_attributes(self.path, {"complete": True, "index_sha256": digest})

    def _small_arrays(self, lost_regions: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
        """Name, dimension and values of each."""
        yield "lost_regions", "image", lost_regions
        for name, dtype in IMAGE_TABLE.items():
            yield name, "image", self.manifest.table[name].to_numpy(dtype)
        for layer, shape in self.spec.layers.items():
            shards = self._stats[layer]
            mean, std = mean_std(shards, self.spec.images * shape.patches)
            yield f"mean_{layer}", f"dim_{layer}", mean
            yield f"std_{layer}", f"dim_{layer}", std
            checksums = [value for shard in sorted(shards) for value in shards[shard].checksums]
            yield f"checksum_{layer}", "image", np.array(checksums, np.uint32)


def locked(path: Path) -> "FileLock":
    """The operating system's lock on a store's place, taken at once: `.<store>.lock` beside it.

    It ends with its process, however that dies. The empty file stays: removing a locked file would
    let two processes lock two files of the same name. Raises SpgError if another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise SpgError(
            f"Another process is writing {path}. Wait for it to end, stop it, or write "
            "to another place with --out."
        ) from error
    return lock


def refuse_what_is_no_store(path: Path) -> None:
    """Raise SpgError if something else than a store is in the place."""
    there = read_attributes(path) or {}
    if {"schema", "fingerprint"} <= set(there) or is_damaged_store(path):
        return
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise SpgError(
            f"{path} exists and is not a feature store. Choose another place or remove it."
        )


def _refuse_other_content(path: Path, spec: StoreSpec, manifest: Manifest) -> None:
    """Raise SpgError if a store is in the place, with what differs."""
    if is_damaged_store(path):
        raise SpgError(f"{path} is a store with a damaged zarr.json: write it anew with {REMAKE}.")
    there, wanted = read_attributes(path), spec.attributes()
    if not there:
        return
    words = []
    for name in [name for name in wanted if name not in spec.BESIDE]:
        old, new = there.get(name), wanted[name]
        if old == new:
            continue
        if name == "manifest":
            words.append("its images, masks or labels are others")
        elif isinstance(old, dict) and isinstance(new, dict):
            keys = [key for key in {**new, **old} if old.get(key) != new.get(key)]
            words.append(f"{name} differs ({', '.join(keys)})")
        else:
            words.append(f"{name}: found {old!r}, expected {new!r}")
    here = set(manifest.table["path"])
    repaired = [bad["path"] for bad in there.get("skipped") or () if bad["path"] in here]
    if repaired:
        words.append(f"it left out what is no longer left out: {listed(repaired)}")
    raise SpgError(
        f"{path} holds a store of other content ({'; '.join(words) or 'changed attributes'}). "
        "Use --replace to write it anew, or choose another place."
    )


def _change_attributes(path: Path, changes: Mapping[str, object]) -> None:
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"].update(changes)
    metadata["attributes"]["seal"] = seal_of(metadata)
    write_json(path / "zarr.json", metadata)
