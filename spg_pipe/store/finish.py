"""Finish a store from the records of its shards: statistics, index, metadata, the last mark."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import zarr

from spg_pipe.artefacts.files import write_bytes, write_json
from spg_pipe.artefacts.reading import MOST_BYTES, read_file, reading
from spg_pipe.errors import SpgError, counted
from spg_pipe.recipe.places import Place
from spg_pipe.store.begin import begun, refuse_what_is_no_store, spec_in, write_array
from spg_pipe.store.claims import holding, ranges_of, require_unclaimed
from spg_pipe.store.files import StoreFiles
from spg_pipe.store.format import (
    COMMAND,
    IMAGE_TABLE,
    SHARD_INDEX,
    StoreSpec,
    array_forms,
    large_arrays,
    seal_of,
)
from spg_pipe.store.parts import PARTS, entry_is_intact, part_file, part_name, read_part
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.shards import ShardEntry, data_files, parse_entries, save_entries
from spg_pipe.store.statistics import LayerStatistics


def finish_store(path: Place) -> FeatureStore:
    """Finish a store whose shards are all there; a finished one is opened.

    Raises
    ------
    SpgError
        If it is no store, shards are missing (which, and how to make them), or other processes
        write there.
    """
    if isinstance(path, str):
        _finish_elsewhere(StoreFiles(path))
        return FeatureStore(path)
    if not path.exists():
        raise SpgError(f"{path} does not exist. Check the path, or begin it: `spg-pipe extract`.")
    refuse_what_is_no_store(path)
    spec = begun(path)
    if spec is not None and spec.complete and not (path / PARTS).exists():
        return FeatureStore(path)  # perhaps on a disk where no lock can be made
    with holding(path):
        spec = begun(path)
        if spec is None:
            return FeatureStore(path)  # which says what is wrong with it
        require_unclaimed(path)
        if not spec.complete:
            complete(path, spec)
        clear_parts(path)
    return FeatureStore(path)


def _finish_elsewhere(files: StoreFiles) -> None:
    """The same of a store behind a URL, whose small files are made here and put there.

    Several processes may do so at the same time: they put the same bytes.
    """
    spec = spec_in(files)
    if spec is None:
        return  # who opens it says what is wrong with it
    records = [part_name(shard) for shard in range(spec.shards)]
    if not spec.complete:
        with TemporaryDirectory(prefix="spg-finish-") as folder:
            _complete_elsewhere(files, spec, records, Path(folder))
    files.remove(records)


def _complete_elsewhere(
    files: StoreFiles, spec: StoreSpec, records: Sequence[str], root: Path
) -> None:
    """Make what is lacking below `root`, from what is there, and put it, the mark last."""
    (root / PARTS).mkdir()
    begun_with = ["zarr.json", SHARD_INDEX, *(f"{name}/c/0" for name in IMAGE_TABLE)]
    begun_with += [f"{name}/zarr.json" for name in (*large_arrays(spec), *IMAGE_TABLE)]

    def load(name: str) -> bool:
        try:
            write_bytes(root / name, files.read(name))
        except FileNotFoundError:
            return False
        return True

    with ThreadPoolExecutor(files.threads, "spg-load") as pool:
        loaded = dict(zip(begun_with, pool.map(load, begun_with), strict=True))
        list(pool.map(load, records))
    if lacking := [name for name in begun_with if not loaded[name]]:
        raise SpgError(
            f"{files.place} lacks {lacking[0]}: it was not begun as a whole. Give the `spg-pipe "
            "extract --shards` that began it again."
        )
    there = files.sizes([name for name, _ in data_files(spec)])
    try:
        complete(root, spec, there.get, files.place)
    except SpgError:
        now = spec_in(files)
        if now is None or not now.complete:  # else another process has, and removed the records
            raise
        return
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name not in {*begun_with, *records}:
            files.put(name, path.read_bytes())
    for name in (SHARD_INDEX, "zarr.json"):
        files.put(name, (root / name).read_bytes())


def complete(
    root: Path,
    spec: StoreSpec,
    size: Callable[[str], int | None] | None = None,
    place: Place | None = None,
) -> None:
    """Merge the records of the shards in order, and set the mark; the records stay.

    `size` of a data file by its name, and the store's `place`, where that is not `root`. Only for
    who holds the lock of the store, while nobody writes a shard.
    """
    size, place = size or StoreFiles(root).size, place or root
    entries, missing = _table_entries(root, place), []
    layers = {name: LayerStatistics(shape.dim) for name, shape in spec.layers.items()}
    lost: list[int] = []
    for shard in range(spec.shards):
        part = read_part(root, spec, shard)
        if part is None or not part.has_sizes(size):
            missing.append(shard)
            continue
        entries += part.files
        lost += part.lost_regions
        for name, layer in layers.items():
            layer.add(part.statistics(name))
    if missing:
        raise SpgError(_says_missing(place, spec, missing))
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


def _table_entries(root: Path, place: Place) -> list[ShardEntry]:
    """Entries of the image table's files, whose bytes are checked."""
    path, names = root / SHARD_INDEX, {f"{name}/c/0" for name in IMAGE_TABLE}
    with reading(path, "index of a store", COMMAND):
        listed = parse_entries(read_file(path, MOST_BYTES), path)
    entries = [entry for entry in listed if entry.name in names]
    whole = {entry.name for entry in entries if entry_is_intact(root, entry)}
    if whole != names or not (root / PARTS).is_dir():
        fault = f"{min(names - whole)} is damaged" if whole != names else "it has no records"
        raise SpgError(
            f"{place} was left unfinished by an older version, or is damaged ({fault}). Give its "
            "`spg-pipe extract` again, which mends it and keeps the shards that are whole."
        )
    return entries


def _says_missing(place: Place, spec: StoreSpec, missing: list[int]) -> str:
    first, more, _ = ranges_of(missing).partition(",")
    return (
        f"{place} lacks {len(missing)} of its {counted(spec.shards, 'shard')}: "
        f"{ranges_of(missing)}. Make them with the `spg-pipe extract` that began it and --shards "
        f"{first}{' and so on' if more else ''}, or all at once without --shards; if other "
        "machines made them, see that they share this folder."
    )


def sweep(root: Path, known: Set[str]) -> None:
    """Remove what killed writers left: all files but these, by their paths below the store."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(root).as_posix() not in known:
            path.unlink()
