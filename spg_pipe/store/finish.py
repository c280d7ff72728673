"""Finish a store from the records of its shards: statistics, index, metadata, the last mark."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
import zarr

from spg_pipe.artefacts.files import write_json
from spg_pipe.artefacts.reading import MOST_BYTES, read_file, reading
from spg_pipe.errors import SpgError, counted
from spg_pipe.store.begin import begun, refuse_what_is_no_store, write_array
from spg_pipe.store.claims import holding, ranges_of, require_unclaimed
from spg_pipe.store.format import (
    COMMAND,
    IMAGE_TABLE,
    SHARD_INDEX,
    StoreSpec,
    array_forms,
    seal_of,
)
from spg_pipe.store.parts import PARTS, entry_is_intact, part_file, read_part
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import ShardEntry, parse_entries, save_entries
from spg_pipe.store.statistics import LayerStatistics


def finish_store(path: Path) -> FeatureStore:
    """Finish a store whose shards are all there; a finished one is opened.

    Raises
    ------
    SpgError
        If it is no store, shards are missing (which, and how to make them), or other processes
        write there.
    """
    path = Path(path)
    if not path.is_dir():
        raise SpgError(f"{path} does not exist. Check the path, or begin it: `spg-pipe extract`.")
    refuse_what_is_no_store(path)
    with holding(path):
        spec = begun(path)
        if spec is None:
            return FeatureStore(path)  # which says what is wrong with it
        require_unclaimed(path)
        if not spec.complete:
            complete(path, spec)
        clear_parts(path)
    return FeatureStore(path)


def complete(root: Path, spec: StoreSpec) -> None:
    """Merge the records of the shards in order, and set the mark; the records stay.

    Only for who holds the lock of the store, while nobody writes a shard.
    """
    entries, missing = _table_entries(root, spec), []
    layers = {name: LayerStatistics(shape.dim) for name, shape in spec.layers.items()}
    lost: list[int] = []
    for shard in range(spec.shards):
        part = read_part(root, spec, shard)
        if part is None or not part.has_sizes(root):
            missing.append(shard)
            continue
        entries += part.files
        lost += part.lost_regions
        for name, layer in layers.items():
            layer.add(part.statistics(name))
    if missing:
        raise SpgError(_says_missing(root, spec, missing))
    entries.append(write_array(root, spec, "lost_regions", "image", np.array(lost, np.uint32)))
    for name, layer in layers.items():
        mean, std = layer.mean_std(spec.images * spec.layers[name].patches)
        checksums = np.array(layer.checksums, np.uint32)
        entries += [
            write_array(root, spec, f"mean_{name}", f"dim_{name}", mean),
            write_array(root, spec, f"std_{name}", f"dim_{name}", std),
            write_array(root, spec, f"checksum_{name}", "image", checksums),
        ]
    metadata = {f"{name}/zarr.json" for name in array_forms(spec)}
    records = {part_file(root, shard).relative_to(root).as_posix() for shard in range(spec.shards)}
    known = {entry.name for entry in entries} | metadata | records
    sweep(root, known | {"zarr.json", SHARD_INDEX})
    save_entries(root, entries)
    _seal(root)


def clear_parts(root: Path) -> None:
    """Remove the records of shards from a finished store."""
    if (root / PARTS).exists():
        shutil.rmtree(root / PARTS)


def change_attributes(root: Path, changes: Mapping[str, object]) -> None:
    """Change attributes of a finished store, atomically, with its seal."""
    metadata = json.loads((root / "zarr.json").read_text())
    metadata["attributes"].update(changes)
    metadata["attributes"]["seal"] = seal_of(metadata)
    write_json(root / "zarr.json", metadata)


def _seal(root: Path) -> None:
    """Consolidate the metadata and set the mark of completeness, the last step of all."""
    group = zarr.open_group(root, mode="r+")
    with warnings.catch_warnings():
        # shards.json is ours, and Zarr v3's consolidated metadata is not yet standardised:
        # both are known (docs/store.md).
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(group.store)
    index = hashlib.sha256((root / SHARD_INDEX).read_bytes()).hexdigest()
    change_attributes(root, {"complete": True, "index_sha256": index})


def _table_entries(root: Path, spec: StoreSpec) -> list[ShardEntry]:
    """Entries of the image table's files, whose bytes are checked."""
    path, names = root / SHARD_INDEX, {f"{name}/c/0" for name in IMAGE_TABLE}
    with reading(path, "index of a store", COMMAND):
        listed = parse_entries(read_file(path, MOST_BYTES), path)
    entries = [entry for entry in listed if entry.name in names]
    whole = {entry.name for entry in entries if entry_is_intact(root, entry)}
    if whole != names or not (root / PARTS).is_dir():
        fault = f"{min(names - whole)} is damaged" if whole != names else "it has no records"
        raise SpgError(
            f"{root} was left unfinished by an older version, or is damaged ({fault}). Give its "
            "`spg-pipe extract` again, which mends it and keeps the shards that are whole."
        )
    return entries


def _says_missing(root: Path, spec: StoreSpec, missing: list[int]) -> str:
    first = ranges_of(missing).partition(",")[0]
    return (
        f"{root} lacks {len(missing)} of its {counted(spec.shards, 'shard')}: "
        f"{ranges_of(missing)}. Make them with the `spg-pipe extract` that began it and --shards "
        f"{first}, or all at once without --shards."
    )


def sweep(root: Path, known: Set[str]) -> None:
    """Remove what killed writers left: all files but these, by their paths below the store."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(root).as_posix() not in known:
            path.unlink()
