"""Write a store shard by shard, so that a killed run resumes at the first missing shard."""

import json
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from spg_pipe.artefacts.files import versions, write_json
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError, listed
from spg_pipe.store import schema
from spg_pipe.store.lock import WriterLock
from spg_pipe.store.schema import StoreSpec
from spg_pipe.store.shards import (
    ShardEntry,
    crc32c,
    data_files,
    file_entry,
    load_entries,
    mask_shard_name,
    prefix_chunk_name,
    raw_bytes,
    save_entries,
    shard_files,
    token_shard_name,
    write_file,
    write_shard,
)
from spg_pipe.store.statistics import LayerStatistics, ShardStatistics

_BESIDE = ("skipped", "selection", "notes", "sources")
"""Attributes that say more of the images than the fingerprint: which of the dataset are left out,
what a person should know, what they were painted on."""


class StoreWriter:
    """Writes one store; `missing_shards` says what is still to be done.

    A context: it locks the store's place, so that one process writes at a time. A store that is
    `up_to_date` is not locked and not touched, unless what is said beside its content has changed.

    Parameters
    ----------
    path : Path
        The store's folder.
    spec : StoreSpec
        What determines the content; its fingerprint decides whether a store that is already
        there is this one.
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
        self._stats = {name: LayerStatistics() for name in spec.layers}
        self._lock = WriterLock(path)

    def __enter__(self) -> Self:
        self.up_to_date = self._is_up_to_date()
        if not self.up_to_date or self._outdated():
            _refuse_what_is_no_store(self.path)
            self._lock.acquire()
            try:
                self._begin()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, SpgError) and not self._entries and not self.up_to_date:
            # Without a single finished shard there is nothing to go on with.
            shutil.rmtree(self.path)
        self._lock.release()

    def _is_up_to_date(self) -> bool:
        found = schema.read_attributes(self.path)
        if not _is_begun(found, self.spec) or not (found or {}).get("complete"):
            return False
        return self._sound(_recorded(self.path, self._replace), self._replace)

    def _begin(self) -> None:
        """Go on with what is there, or make room and declare the arrays."""
        self.up_to_date = self._is_up_to_date()  # another process may have finished it meanwhile
        if self.up_to_date:
            if outdated := self._outdated():
                _write_attributes(self.path, outdated)
            return
        found = schema.read_attributes(self.path)
        begun = _is_begun(found, self.spec)
        recorded = _recorded(self.path, self._replace) if begun else []
        resumable = begun and schema.arrays_declared(self.path, self.spec)
        if self.path.exists() and not resumable:
            _make_room(self.path, found, self.spec, self.manifest, replace=self._replace or begun)
        if resumable:
            if (found or {}).get("complete"):
                _mark_complete(self.path, False)
            self._recover(recorded)
            self._sweep()
        else:
            schema.create_arrays(self.path, self.spec, self._attributes())

    def _attributes(self) -> dict[str, Any]:
        return self.spec.content() | {
            "fingerprint": self.spec.fingerprint,
            "licences": [*self.manifest.licences, self.spec.backbone.licence],
            "notes": list(self.manifest.notes),
            "skipped": [bad.model_dump() for bad in self.manifest.skipped],
            "selection": dict(self.manifest.selection),
            "sources": self.manifest.own_sources,
            "layout": self.manifest.layout,
            "versions": versions(),
        }

    def _outdated(self) -> dict[str, Any]:
        """What a finished store of the same images says otherwise beside its content.

        It is not part of the fingerprint, so damaged files may come and go without new tokens.
        """
        found, wanted = schema.read_attributes(self.path) or {}, self._attributes()
        if all((found.get(key) or None) == (wanted[key] or None) for key in _BESIDE):
            return {}
        return {key: wanted[key] for key in _BESIDE}

    def _recover(self, entries: list[ShardEntry]) -> None:
        """Keep the shards that are recorded and whole; the others are written again."""
        recorded = {entry.name: entry for entry in entries}
        for shard in range(self.spec.shards):
            names = shard_files(self.spec, shard)
            if not all(name in recorded and self._intact(recorded[name]) for name in names):
                continue
            self._entries += [recorded[name] for name in names]
            for layer in self.spec.layers:
                tokens = schema.shard_tokens(self.path, self.spec, layer, shard)
                self._stats[layer].shards[shard] = ShardStatistics.of(tokens)

    def _sweep(self) -> None:
        """Remove what a killed writer left: unrecorded and temporary files, small arrays."""
        declared = [f"{name}/zarr.json" for name in schema.array_names(self.spec)]
        known = {"zarr.json", *declared, *(entry.name for entry in self._entries)}
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.path).as_posix() not in known:
                path.unlink()
        if self._entries:
            save_entries(self.path, self._entries)

    def _intact(self, entry: ShardEntry) -> bool:
        path = self.path / entry.name
        return path.is_file() and crc32c(path.read_bytes()) == entry.crc32c

    def _sound(self, entries: list[ShardEntry], every_byte: bool) -> bool:
        """Whether a complete store has all its files: by size, or by reading `every_byte`."""
        if not set(data_files(self.spec)) <= {entry.name for entry in entries}:
            return False
        if every_byte:
            return all(self._intact(entry) for entry in entries)
        paths = [(self.path / entry.name, entry.bytes) for entry in entries]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    @property
    def missing_shards(self) -> list[int]:
        """Shards that are not yet recorded, in order."""
        done = {entry.name for entry in self._entries}
        return [s for s in range(self.spec.shards) if not set(shard_files(self.spec, s)) <= done]

    def write_shard(
        self,
        shard: int,
        tokens: dict[str, np.ndarray],
        prefix: dict[str, np.ndarray],
        masks: np.ndarray,
    ) -> None:
        """Write all arrays' parts of one shard, then record it.

        Parameters
        ----------
        tokens, prefix : dict of layer → (n, N, D) and (n, P, D) in the store's dtype
        masks : (n, S, S) uint8
        """
        rows, places = self.spec.shard_rows(shard), self.spec.shard_images
        entries = []
        for layer in self.spec.layers:
            chunks = [self.spec.encode_tokens(raw_bytes(image)) for image in tokens[layer]]
            name = token_shard_name(layer, shard)
            entries.append(write_shard(self.path, name, chunks, rows, places))
            # A chunk of prefix tokens is always full: the last one ends with fill values.
            padded = np.full((places, *prefix[layer].shape[1:]), np.nan, self.spec.dtype)
            padded[: len(rows)] = prefix[layer]
            name = prefix_chunk_name(layer, shard)
            entries.append(write_file(self.path, name, rows, raw_bytes(padded)))
            self._stats[layer].shards[shard] = ShardStatistics.of(tokens[layer])
        masks_encoded = [schema.encode_mask(mask) for mask in masks]
        entries.append(write_shard(self.path, mask_shard_name(shard), masks_encoded, rows, places))
        self._entries += entries
        save_entries(self.path, self._entries)

    def finish(self, lost_regions: np.ndarray) -> None:
        """Write the small arrays, consolidate the metadata and set the completeness mark.

        Parameters
        ----------
        lost_regions : (images,) uint32
            Defect regions of each mask that vanished when it was resized to S×S.
        """
        import zarr

        if self.missing_shards:
            raise SpgError(f"{self.path}: shards {self.missing_shards} are missing.")
        lost = ("lost_regions", ("image",), lost_regions)
        small = []
        for name, dimensions, values in [lost, *self._small_arrays()]:
            schema.write_small(self.path, name, values, dimensions)
            small.append(file_entry(self.path, f"{name}/c/0", range(self.spec.images)))
        save_entries(self.path, [*self._entries, *small])
        group = zarr.open_group(self.path, mode="r+")
        group.attrs.update(self._attributes())
        with warnings.catch_warnings():
            # shards.json is ours, and Zarr v3's consolidated metadata is not yet standardised:
            # both are known (docs/store.md).
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(group.store)
        _mark_complete(self.path, True)

    def _small_arrays(self) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
        table = self.manifest.table
        arrays: list[tuple[str, tuple[str, ...], np.ndarray]] = [
            (name, ("image",), table[name].to_numpy(dtype))
            for name, dtype in (
                ("mask_state", "uint8"),
                ("label", "uint8"),
                ("height", "int32"),
                ("width", "int32"),
                ("category", object),
                ("defect", object),
                ("path", object),
            )
        ]
        for layer, shape in self.spec.layers.items():
            mean, std = self._stats[layer].mean_std(self.spec.images * shape.patches)
            arrays += [
                (f"mean_{layer}", (f"dim_{layer}",), mean),
                (f"std_{layer}", (f"dim_{layer}",), std),
                (f"checksum_{layer}", ("image",), self._stats[layer].checksums()),
            ]
        return arrays


def _recorded(path: Path, replace: bool) -> list[ShardEntry]:
    """shards.json; a damaged one counts as empty where the store may be written anew."""
    try:
        return load_entries(path)
    except SpgError:
        if not replace:
            raise
        return []


def _is_begun(found: dict[str, Any] | None, spec: StoreSpec) -> bool:
    """Whether a store of this content is there, all of its attributes as they were written."""
    wanted = json.loads(json.dumps(spec.content())) | {"fingerprint": spec.fingerprint}
    return found is not None and all(found.get(key) == value for key, value in wanted.items())


def _refuse_what_is_no_store(path: Path) -> None:
    found = schema.read_attributes(path)
    if found is not None and {"schema", "fingerprint"} <= set(found):
        return
    if schema.is_damaged_store(path):
        return
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise SpgError(
            f"{path} exists and is not a feature store. Choose another place or remove it."
        )


def _make_room(
    path: Path,
    found: dict[str, Any] | None,
    spec: StoreSpec,
    manifest: Manifest,
    *,
    replace: bool,
) -> None:
    _refuse_what_is_no_store(path)
    if schema.is_damaged_store(path) and not replace:
        raise SpgError(f"{path} is a store, but {schema.DAMAGED_METADATA}")
    if found is not None and not replace:
        differences = _differences(found, spec.content())
        raise SpgError(
            f"{path} holds a store of other content ({differences}{_repaired(found, manifest)}). "
            "Use --replace to write it anew, or choose another place."
        )
    shutil.rmtree(path)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [key for key in wanted if found.get(key) != wanted[key]]
    return "; ".join(_difference(key, found.get(key), wanted[key]) for key in names) or (
        "another fingerprint"
    )


def _difference(key: str, found: Any, wanted: Any) -> str:
    if key == "manifest":
        return "its images, masks or labels are others"
    if not isinstance(wanted, dict):
        return f"{key}: found {found!r}, expected {wanted!r}"
    inner = [k for k in {**wanted, **(found or {})} if (found or {}).get(k) != wanted.get(k)]
    return f"{key} differs ({', '.join(inner)})"


def _repaired(found: dict[str, Any], manifest: Manifest) -> str:
    """Which images a store left out and the manifest has: they were repaired since."""
    here = set(manifest.table["path"])
    repaired = [bad["path"] for bad in found.get("skipped") or () if bad["path"] in here]
    return f"; it left out what is no longer left out: {listed(repaired)}" if repaired else ""


def _mark_complete(path: Path, complete: bool) -> None:
    _write_attributes(path, {"complete": complete})


def _write_attributes(path: Path, changes: dict[str, Any]) -> None:
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"].update(changes)
    write_json(path / "zarr.json", metadata)
