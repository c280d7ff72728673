"""Open a finished store and read it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spg_pipe.artefacts.reading import MOST_BYTES, damaged, reading, shown
from spg_pipe.artefacts.record import parse_record
from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.store.files import StoreFiles
from spg_pipe.store.format import (
    COMMAND,
    IMAGE_TABLE,
    SCHEMA_VERSION,
    SHARD_INDEX,
    StoreSpec,
    array_forms,
    decode_mask,
    encode_mask,
    remade,
    require_values,
    seal_of,
)
from spg_pipe.store.shards import ShardEntry, data_files, parse_entries

if TYPE_CHECKING:
    import pandas as pd
from spg_pipe.store.tokens import (
    Checksums,
    PlainTokens,
    RawTokens,
    RemoteTokens,
    TokenArray,
    Unchanged,
)


class FeatureStore:
    """Tokens, masks and labels of a dataset split.

    An `SpgError` if it is missing, unfinished, of another schema, its attributes were changed, a
    file does not have the size that shards.json says, or an array is declared otherwise than they
    say. By the methods too, where what they read is damaged or cannot be read.

    Parameters
    ----------
    path : Path or str
        A finished store's folder, or a URL that fsspec knows.
    plain : bool
        Read tokens through zarr-python even where the faster reader could: the reference.
    check_files : bool
        Refuse a store of which a file is missing or of another size (`verify` lists them all).
    """

    def __init__(self, path: Path | str, *, plain: bool = False, check_files: bool = True) -> None:
        self.files = StoreFiles(path)
        self.path = self.files.place
        self.spec = self._spec()
        try:
            listed = self.files.read(SHARD_INDEX, MOST_BYTES)
        except FileNotFoundError as error:
            raise SpgError(
                f"{self.path} has no {SHARD_INDEX}; to mend it, {remade(self.path)}."
            ) from error
        self.entries = self._listed(listed)
        self._unchanged = Unchanged(self.files.local, self.fingerprint)
        faults = self.file_faults() if check_files else []
        if faults:
            more = f" (and {len(faults) - 1} more: `spg-pipe verify`)" if len(faults) > 1 else ""
            raise SpgError(f"{self.path}: {faults[0]}{more}; to mend it, {remade(self.path)}.")
        self.raw = self.spec.compressor == "none" and not plain
        """Whether tokens are read at their offsets, not through zarr-python."""
        self._arrays: dict[str, np.ndarray] = {}
        self._token_arrays: dict[str, TokenArray] = {}

    def _spec(self) -> StoreSpec:
        metadata = self.files.metadata()
        attributes = metadata.get("attributes")
        if not isinstance(attributes, dict) or "schema" not in attributes:
            raise SpgError(
                f"{self.path} is not a feature store, or its zarr.json is damaged. Check the path, "
                "or make it with `spg-pipe extract`; if it is a damaged store, "
                f"{remade(self.path)}."
            )
        if attributes["schema"] != SCHEMA_VERSION:
            raise SpgError(
                f"{self.path} is a store of schema {shown(attributes['schema'])}; this version "
                f"reads schema {SCHEMA_VERSION}. Take the version that made it, or "
                f"{remade(self.path)}."
            )
        if not attributes.get("complete"):
            raise NotThereError(
                f"{self.path} is not finished. Run the same `spg-pipe extract` again: it goes on "
                "where it stopped; once all its --shards are there, `spg-pipe finish`.",
                command="extract",
            )
        spec = parse_record(json.dumps(attributes), self.path, StoreSpec, "store", COMMAND)
        if spec.seal and spec.seal != seal_of(metadata):
            fault = "its zarr.json does not give its seal, so it was changed or damaged"
            raise damaged(self.path, "store", fault, COMMAND)
        return spec

    def _listed(self, index: bytes) -> list[ShardEntry]:
        """The entries of shards.json, which must be as the attributes say."""
        name, sha256 = f"{self.path}/{SHARD_INDEX}", self.spec.index_sha256
        entries = parse_entries(index, name)
        if sha256 and hashlib.sha256(index).hexdigest() != sha256:
            raise damaged(name, "index of a store", "it was changed or damaged", COMMAND)
        return entries

    def file_faults(self) -> list[str]:
        """Files that are not listed, not there or of another size, and arrays that Zarr cannot
        read; empty if all are well."""
        known, listed = self.known, Counter(entry.name for entry in self.entries)
        faults = [f"{SHARD_INDEX} does not list {name}" for name in known if name not in listed]
        sizes = self.files.sizes([entry.name for entry in self.entries if entry.name in known])
        for entry in self.entries:
            if known.get(entry.name) != entry.images or listed[entry.name] > 1:
                faults.append(f"{SHARD_INDEX} lists {entry.name}, no file of this store, or twice")
                continue
            size = sizes[entry.name]
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                faults.append(
                    f"{entry.name} (images {entry.images[0]}…{entry.images[1] - 1}) {found}, "
                    f"expected {entry.bytes} bytes"
                )
        return faults + self._metadata_faults()

    @cached_property
    def known(self) -> dict[str, tuple[int, int]]:
        """Data files of this store → their images; not many more than are listed."""
        return dict(islice(data_files(self.spec), len(self.entries) + 1000))

    def _metadata_faults(self) -> list[str]:
        """Arrays whose zarr.json is not what the group's own says of them, or the attributes."""
        group = self.files.metadata()
        if not {"zarr_format": 3, "node_type": "group"}.items() <= group.items():
            return ["zarr.json is damaged: it is of no Zarr group"]
        consolidated = group.get("consolidated_metadata")
        arrays = consolidated.get("metadata") if isinstance(consolidated, dict) else None
        forms = array_forms(self.spec)
        faults = [
            f"{name}/zarr.json is missing or damaged, or not as the store's zarr.json says"
            for name in forms
            if not isinstance(arrays, dict)
            or not arrays.get(name)
            or self.files.metadata(f"{name}/zarr.json") != arrays[name]
        ]
        try:
            return faults or [
                f"{name}/zarr.json declares another array than the store's attributes"
                for name, form in forms.items()
                if not form.fits(self.group[name])
            ]
        except DamagedError as error:
            return [str(error)]

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """One message for whatever the block raises while it reads a part of the store."""
        try:
            with reading(f"{self.path}/{name}", "store", COMMAND):
                yield
        except SpgError:
            self._unchanged.require()  # a replaced store explains any fault
            raise
        self._unchanged.require()

    def __len__(self) -> int:
        return self.spec.images

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what determined the content."""
        return self.spec.fingerprint

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the backbone's order."""
        return tuple(self.spec.layers)

    @property
    def image_size(self) -> int:
        """S: the side of the images that the backbone saw, pixels."""
        return self.spec.backbone.preprocess.size

    @property
    def selection(self) -> Mapping[str, Any]:
        """How options chose a part of the dataset (`Manifest.selection`); empty for all of it."""
        return self.spec.selection

    @property
    def synthetic(self) -> Mapping[str, object]:
        """Of a set with painted defects its `normal_images` and `categories`; else empty."""
        if not self.spec.sources:
            return {}
        categories = dict.fromkeys(self.array("category").tolist())
        normal_images = len(set(self.spec.sources.values()))
        return {"normal_images": normal_images, "categories": list(categories)}

    @cached_property
    def group(self) -> Any:
        """The store as a Zarr group, for reading."""
        with self.reading("zarr.json"):
            group = self.files.group(self.fingerprint, self.entries)
            _ = [group[name] for name in array_forms(self.spec)]  # what Zarr cannot read fails here
            return group

    def array(self, name: str) -> np.ndarray:
        """A copy of a small array, for instance `label` or `mean_<layer>`; read once."""
        if name not in self._arrays:
            with self.reading(name):
                values = np.asarray(self.group[name][...])
                require_values(name, values)
            self._arrays[name] = values
        return self._arrays[name].copy()

    def _rows(self, images: np.ndarray) -> np.ndarray:
        """Rows as numbers that exist."""
        rows = np.asarray(images)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise SpgError(
                f"Rows of {self.path} are asked for with {rows.dtype} values of shape "
                f"{rows.shape}; expected integers (n,), for a mask np.flatnonzero(mask)."
            )
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if wrong.size:
            raise SpgError(f"{self.path} has images 0 to {len(self) - 1}; asked for {wrong[0]}.")
        return rows.astype(np.int64)

    def token_array(self, layer: str) -> TokenArray:
        """A layer's patch tokens, read where they are sliced."""
        if layer not in self._token_arrays:
            checksums, folder = Checksums(self.array(f"checksum_{layer}")), self.files.local
            if not self.raw:
                array = self.group[f"tokens_{layer}"]
                tokens: TokenArray = PlainTokens(array, self.spec, layer, checksums)
            elif folder is not None:
                tokens = RawTokens(folder, self.spec, layer, checksums)
            else:
                tokens = RemoteTokens(self.files, self.spec, layer, checksums, self.entries)
            self._token_arrays[layer] = tokens
        return self._token_arrays[layer]

    def tokens(self, layer: str, images: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Patch tokens of some images.

        Parameters
        ----------
        layer : str
        images : (n,) int
            Image rows, in any order.
        out : (n, N, D), optional
            Memory to fill, in the store's dtype; each image's part contiguous.

        Returns
        -------
        (n, N, D) in the store's dtype; `out` if it was given
        """
        rows = self._rows(images)
        if out is None:
            shape = self.spec.layers[layer]
            out = np.empty((len(rows), shape.patches, shape.dim), dtype=self.spec.dtype)
        if len(rows):
            tokens = self.token_array(layer)
            with self.reading(f"tokens_{layer}"):
                tokens.read(rows, out)
        return out

    @cached_property
    def _prefix(self) -> dict[str, np.ndarray]:
        return {layer: self.array(f"prefix_{layer}") for layer in self.layers}

    def cls(self, layer: str, images: np.ndarray) -> np.ndarray:
        """CLS tokens (n, D) of some images, in the store's dtype."""
        return self._prefix[layer][self._rows(images), 0]

    def masks(self, images: np.ndarray) -> np.ndarray:
        """Masks (n, S, S) uint8 in {0, 1}; all zero where `mask_state` is not 1."""
        rows, size, kept = self._rows(images), self.image_size, self._encoded_masks
        masks = np.empty((len(rows), size, size), np.uint8)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            mask[...] = decode_mask(kept[row], size)
        return masks

    @cached_property
    def _encoded_masks(self) -> list[bytes]:
        """All masks as they are on the disk, some hundred bytes each: guides read them over and
        over, and finding one of them through Zarr takes longer than decoding it."""
        kept: list[bytes] = []
        for start in range(0, len(self), self.spec.shard_images):
            with self.reading("mask"):
                masks = np.asarray(self.group["mask"][start : start + self.spec.shard_images])
                if (masks > 1).any():
                    raise ValueError("it holds a value that is neither 0 nor 1")
            kept += [encode_mask(mask) for mask in masks]
        return kept

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row an image: path, category, defect, label, mask_state, height, width."""
        import pandas as pd

        return pd.DataFrame({name: self.array(name) for name in IMAGE_TABLE})


def selection_note(store: FeatureStore) -> str:
    """Which part of its dataset a store holds, in a few words; empty for all of it."""
    chosen, parts = store.selection, []
    if "categories" in chosen:
        parts.append(f"only {', '.join(chosen['categories'])} (--categories)")
    if "limit" in chosen:
        parts.append(f"{chosen['limit']} of {chosen['of']} images (--limit)")
    return ", ".join(parts)
