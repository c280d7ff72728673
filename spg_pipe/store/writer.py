"""Write a store shard by shard, so that a killed run resumes at the first missing shard."""

import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spg_pipe.artifacts import versions, write_json
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.store import schema
from spg_pipe.store.schema import StoreSpec
from spg_pipe.store.shards import (
    ShardEntry,
    crc32c,
    file_entry,
    load_entries,
    save_entries,
    token_shard_name,
    write_token_shard,
)


@dataclass
class _Statistics:
    """Sums over all patch tokens of a layer and the checksum of every image."""

    total: np.ndarray
    squares: np.ndarray
    checksums: dict[int, int] = field(default_factory=dict)
    shards: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def add(self, shard: int, rows: range, tokens: np.ndarray) -> None:
        flat = tokens.reshape(-1, tokens.shape[-1])
        total = np.zeros(flat.shape[1])
        squares = np.zeros(flat.shape[1])
        for start in range(0, len(flat), 65536):
            piece = flat[start : start + 65536].astype(np.float64)
            total += piece.sum(axis=0)
            squares += np.einsum("nd,nd->d", piece, piece)
        self.shards[shard] = (total, squares)
        for row, image in zip(rows, tokens, strict=True):
            self.checksums[row] = crc32c(image)

    def mean_std(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        # Shards are added in order, so that a resumed run gives the same bits.
        for shard in sorted(self.shards):
            self.total += self.shards[shard][0]
            self.squares += self.shards[shard][1]
        mean = self.total / count
        return mean, np.sqrt(np.maximum(self.squares / count - mean**2, 0.0))


class StoreWriter:
    """Writes one store; `missing_shards` says what is still to be done.

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
        If another store, or something else, is in the place.
    """

    def __init__(
        self, path: Path, spec: StoreSpec, manifest: Manifest, *, replace: bool = False
    ) -> None:
        self.path, self.spec, self.manifest = path, spec, manifest
        found = schema.read_attributes(path)
        begun = found is not None and found.get("fingerprint") == spec.fingerprint
        recorded = _recorded(path, replace) if begun else []
        complete = found is not None and begun and bool(found.get("complete"))
        self.up_to_date = complete and self._sound(recorded, replace)
        if self.up_to_date:
            return
        resumable = begun and schema.arrays_declared(path, spec)
        if path.exists() and not resumable:
            _make_room(path, found, spec, replace or begun)
        if not resumable:
            path.parent.mkdir(parents=True, exist_ok=True)
            schema.create_arrays(path, spec, self._attributes())
        self._entries = recorded if resumable else []
        self._stats = {
            name: _Statistics(np.zeros(s.dim), np.zeros(s.dim)) for name, s in spec.layers.items()
        }
        self._recover()

    def _attributes(self) -> dict[str, Any]:
        return self.spec.content() | {
            "fingerprint": self.spec.fingerprint,
            "licences": [*self.manifest.licences, self.spec.backbone.licence],
            "notes": list(self.manifest.notes),
            "layout": self.manifest.layout,
            "versions": versions(),
        }

    def _files(self, shard: int) -> list[str]:
        tokens = [token_shard_name(layer, shard) for layer in self.spec.layers]
        prefix = [f"prefix_{layer}/c/{shard}/0/0" for layer in self.spec.layers]
        return [*tokens, *prefix, f"mask/c/{shard}/0/0"]

    def _recover(self) -> None:
        """Keep the shards that are recorded and whole; remove what there is of the others."""
        recorded = {entry.name: entry for entry in self._entries}
        kept: list[ShardEntry] = []
        for shard in range(self.spec.shards):
            names = self._files(shard)
            if not all(name in recorded and self._intact(recorded[name]) for name in names):
                for name in names:
                    # Zarr would read a damaged short shard before it writes it anew.
                    (self.path / name).unlink(missing_ok=True)
                continue
            kept += [recorded[name] for name in names]
            rows = self.spec.shard_rows(shard)
            for layer, shape in self.spec.layers.items():
                data = np.fromfile(
                    self.path / token_shard_name(layer, shard),
                    dtype=self.spec.dtype,
                    count=len(rows) * shape.patches * shape.dim,
                )
                tokens = data.reshape(len(rows), shape.patches, shape.dim)
                self._stats[layer].add(shard, rows, tokens)
        self._entries = kept

    def _intact(self, entry: ShardEntry) -> bool:
        path = self.path / entry.name
        return path.is_file() and crc32c(path.read_bytes()) == entry.crc32c

    def _sound(self, entries: list[ShardEntry], every_byte: bool) -> bool:
        """Whether a complete store has all its files: by size, or by reading `every_byte`."""
        names = {name for shard in range(self.spec.shards) for name in self._files(shard)}
        if not names <= {entry.name for entry in entries}:
            return False
        if every_byte:
            return all(self._intact(entry) for entry in entries)
        paths = [(self.path / entry.name, entry.bytes) for entry in entries]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def discard_if_empty(self) -> None:
        """Remove a store without a single finished shard: there is nothing to go on with."""
        if not self._entries:
            shutil.rmtree(self.path)

    @property
    def missing_shards(self) -> list[int]:
        """Shards that are not yet recorded, in order."""
        done = {entry.name for entry in self._entries}
        return [s for s in range(self.spec.shards) if not set(self._files(s)) <= done]

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
        tokens, prefix : dict of layer → (n, N, D) and (n, P, D) float32
        masks : (n, S, S) uint8

        Raises
        ------
        SpgError
            If a value does not fit the store's dtype.
        """
        import zarr

        rows = self.spec.shard_rows(shard)
        # Zarr skips chunks that equal the fill value; a shard of normal images has empty masks
        # and must be on disk all the same, or nobody could tell it from a lost one.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group: Any = zarr.open_group(self.path, mode="r+")
            group["mask"][rows.start : rows.stop] = masks
        entries = [file_entry(self.path, f"mask/c/{shard}/0/0", rows)]
        for layer in self.spec.layers:
            stored = self._cast(tokens[layer], layer)
            entries.append(
                write_token_shard(self.path, layer, shard, stored, rows, self.spec.shard_images)
            )
            self._stats[layer].add(shard, rows, stored)
            group[f"prefix_{layer}"][rows.start : rows.stop] = self._cast(prefix[layer], layer)
            entries.append(file_entry(self.path, f"prefix_{layer}/c/{shard}/0/0", rows))
        self._entries += entries
        save_entries(self.path, self._entries)

    def _cast(self, values: np.ndarray, layer: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = values.astype(self.spec.dtype)
        if not np.isfinite(stored).all():
            raise SpgError(
                f"Layer {layer} has tokens that do not fit {self.spec.dtype} (largest value "
                f"{np.abs(values).max():.4g}). Set `extract.dtype: float32` "
                "and extract with --replace."
            )
        return stored

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
        _mark_complete(self.path)

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
            statistics = self._stats[layer]
            mean, std = statistics.mean_std(self.spec.images * shape.patches)
            checksums = [statistics.checksums[row] for row in range(self.spec.images)]
            arrays += [
                (f"mean_{layer}", (f"dim_{layer}",), mean),
                (f"std_{layer}", (f"dim_{layer}",), std),
                (f"checksum_{layer}", ("image",), np.array(checksums, dtype="uint32")),
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


def _make_room(path: Path, found: dict[str, Any] | None, spec: StoreSpec, replace: bool) -> None:
    ours = found is not None and {"schema", "fingerprint"} <= set(found)
    if not ours and any(path.iterdir() if path.is_dir() else [path]):
        raise SpgError(
            f"{path} exists and is not a feature store. Choose another place or remove it."
        )
    if found is not None and not replace:
        differences = _differences(found, spec.content())
        raise SpgError(
            f"{path} holds a store of other content ({differences}). "
            "Use --replace to write it anew, or choose another place."
        )
    shutil.rmtree(path)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [key for key in wanted if found.get(key) != wanted[key]]
    parts = [
        f"{key}: found {found.get(key)!r}, expected {wanted[key]!r}"
        if not isinstance(wanted[key], dict)
        else f"{key} differs"
        for key in names
    ]
    return "; ".join(parts) or "another fingerprint"


def _mark_complete(path: Path) -> None:
    import json

    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["complete"] = True
    write_json(path / "zarr.json", metadata)
