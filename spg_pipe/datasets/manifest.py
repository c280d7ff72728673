"""The Manifest: which images a dataset split has, and what is known about each.

One row an image, in an order that depends on names alone, so that two machines with the same
files write the same bytes. Paths are relative; the folder they start from is not part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.datasets.skipped import Skipped, recorded
from spg_pipe.errors import SpgError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FORMAT = 1
"""Version of the file's format; a reader refuses any other."""

LABEL_NORMAL, LABEL_ANOMALOUS, LABEL_UNKNOWN = 0, 1, 255


class MaskState(IntEnum):
    """What is known about the defect's pixels."""

    EMPTY = 0
    """A normal image: empty by definition."""
    GIVEN = 1
    """There is a mask file."""
    MISSING = 2
    """A defect without a mask, or an image without a label. Never taken for normal."""


COLUMNS = {
    "path": "string",  # posix, relative to the root
    "mask": "string",  # likewise; "" if there is none
    "mask_state": "uint8",
    "category": "string",
    "defect": "string",  # "good" for normal images, "" if unknown
    "label": "uint8",
    "height": "int32",  # pixels on disk, after the orientation policy
    "width": "int32",
    "sha256": "string",  # hex, of the file's bytes
    "mask_sha256": "string",  # likewise; "" if there is none
}


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of one dataset split.

    Rows are sorted by category, then normal images first, then defect, then path.
    """

    dataset: str
    """Name of the dataset."""
    split: str
    """`test`, `train` or `all`."""
    layout: str
    """`mvtec`, `visa`, `folder` or `synthetic`."""
    root: Path
    """Where the relative paths start. Neither saved nor part of the fingerprint."""
    table: pd.DataFrame
    """One row an image; columns and types as in `COLUMNS`."""
    licences: tuple[str, ...]
    """The licence of each set of images, for example `VisA: CC BY 4.0`."""
    notes: tuple[str, ...]
    """What a person should know: missing categories, other counts than the official ones."""
    exif: bool
    """Whether EXIF orientation is honoured, for image and mask alike (docs/method.md §5)."""
    skipped: tuple[Skipped, ...] = ()
    """Images that `skip_bad` left out. Not part of the fingerprint: the rows are the content."""
    selection: Mapping[str, object] = field(default_factory=dict)
    """How options chose a part of the dataset: `categories`, `limit` and `of`; empty for all."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Of images that `synthesise` made, path → `source_id` of the normal image behind it. Not part
    of the fingerprint: the hashes of the files are."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def own_sources(self) -> dict[str, str]:
        """`sources` of the images that are in the table."""
        return {path: self.sources[path] for path in self.table["path"] if path in self.sources}

    def image_path(self, index: int) -> Path:
        """Path of image `index`."""
        return self.root / self.table["path"].iloc[index]

    def mask_path(self, index: int) -> Path | None:
        """Path of the mask of image `index`, None if it has no mask file."""
        mask = self.table["mask"].iloc[index]
        return self.root / mask if mask else None

    def spread(self, limit: int) -> Manifest:
        """At most `limit` images, evenly spread over categories and labels.

        Each category and label keeps its share, and at least one image if `limit` is not smaller
        than their number. A manifest of its own: its fingerprint differs.
        """
        if limit >= len(self):
            return self
        labels = zip(self.table["category"], self.table["label"], strict=True)
        rows = _spread_rows(list(labels), limit)
        note = f"{limit} of {len(self)} images (--limit)"
        return replace(
            self,
            table=self.table.iloc[rows].reset_index(drop=True),
            notes=(*self.notes, note),
            selection={**self.selection, "limit": limit, "of": len(self)},
        )

    def without(self, paths: Collection[str]) -> Manifest:
        """The same without some images, as if their files were not there."""
        table = self.table[~self.table["path"].isin(list(paths))].reset_index(drop=True)
        return replace(self, table=table)

    def summary(self) -> pd.DataFrame:
        """Number of images per category.

        Returns
        -------
        DataFrame
            Index `category`; int columns `images`, `normal`, `anomalous`, `unlabelled` and
            `without_mask` (anomalous images whose mask is missing).
        """
        table = self.table
        missing = table["mask_state"] == MaskState.MISSING
        columns = {
            "images": table["label"] >= 0,
            "normal": table["label"] == LABEL_NORMAL,
            "anomalous": table["label"] == LABEL_ANOMALOUS,
            "unlabelled": table["label"] == LABEL_UNKNOWN,
            "without_mask": missing & (table["label"] == LABEL_ANOMALOUS),
        }
        counts = table[["category"]].assign(**columns).groupby("category", sort=False).sum()
        return counts.astype("int64")

    def fingerprint(self) -> str:
        """Sha256 (hex) of what determines the content: every row, the policy and the licences.

        Neither the root nor the notes take part, nor what was skipped: without a damaged file the
        dataset is the same as with it left out.
        """
        identity = {
            "format": FORMAT,
            "dataset": self.dataset,
            "split": self.split,
            "layout": self.layout,
            "exif": self.exif,
            "licences": list(self.licences),
            "rows": {name: self.table[name].tolist() for name in COLUMNS},
        }
        return hashlib.sha256(_canonical_json(identity)).hexdigest()

    def save(self, path: Path) -> None:
        """Write a Parquet file (zstd); the same content gives the same bytes.

        The file appears whole or not at all.
        """
        import pyarrow.parquet as pq

        metadata = {
            "format": FORMAT,
            "dataset": self.dataset,
            "split": self.split,
            "layout": self.layout,
            "exif": self.exif,
            "licences": list(self.licences),
            "notes": list(self.notes),
            "skipped": [bad.to_dict() for bad in self.skipped],
            "selection": dict(self.selection),
            "sources": self.own_sources,
            "fingerprint": self.fingerprint(),
        }
        table = to_arrow(self.table).replace_schema_metadata({b"spg": _canonical_json(metadata)})
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, root: Path) -> Manifest:
        """Read a manifest; `root` is the folder where its relative paths start.

        Raises
        ------
        SpgError
            The file is missing, damaged, of another format, or was edited.
        """
        table, metadata = _read(path)
        try:
            skipped = tuple(recorded(metadata.get("skipped")))
        except SpgError as error:
            raise SpgError(f"{path}: {error} Run `spg-pipe prepare` again.") from error
        manifest = cls(
            dataset=metadata["dataset"],
            split=metadata["split"],
            layout=metadata["layout"],
            root=root,
            table=table,
            licences=tuple(metadata["licences"]),
            notes=tuple(metadata["notes"]),
            exif=metadata["exif"],
            skipped=skipped,
            selection=metadata.get("selection", {}),
            sources=metadata.get("sources", {}),
        )
        if manifest.fingerprint() != metadata["fingerprint"]:
            raise SpgError(
                f"The manifest {path} does not match its own fingerprint: it was edited or "
                f"damaged. Make it anew with `spg-pipe prepare`."
            )
        return manifest


def _spread_rows(groups: Sequence[tuple[str, int]], limit: int) -> list[int]:
    """Rows in order, `limit` of them: of each group its share, evenly spaced within it."""
    members: dict[tuple[str, int], list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if limit < len(members):
        every = list(members.values())
        return [every[at][0] for at in _spaced(limit, len(every))]
    share = dict.fromkeys(members, 1)
    for _ in range(limit - len(members)):
        # Sainte-Laguë: shares as near to the true proportions as whole images allow.
        neediest = max(members, key=lambda g: len(members[g]) / (2 * share[g] + 1))
        share[neediest] += 1
    rows = [members[g][at] for g in members for at in _spaced(share[g], len(members[g]))]
    return sorted(rows)


def _spaced(count: int, total: int) -> list[int]:
    """`count` places of `total`, in the middle of equal parts."""
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]


def to_frame(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Rows with the keys of `COLUMNS` as a table with its types."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=_schema()).to_pandas()


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """The table with the types of `COLUMNS` and no pandas metadata (it names versions)."""
    import pyarrow as pa

    arrow = pa.Table.from_pandas(table[list(COLUMNS)], schema=_schema(), preserve_index=False)
    return arrow.replace_schema_metadata(None)


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"string": pa.string(), "uint8": pa.uint8(), "int32": pa.int32()}
    return pa.schema([pa.field(n, types[t], nullable=False) for n, t in COLUMNS.items()])


def _read(path: Path) -> tuple[pd.DataFrame, dict]:
    """Table and metadata of a manifest file, or an SpgError that says what is wrong with it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise SpgError(f"There is no manifest at {path}. Make it with `spg-pipe prepare`.")
    again = "Make it anew with `spg-pipe prepare`."
    try:
        arrow = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SpgError(f"The manifest {path} cannot be read ({error}). {again}") from error
    raw = (arrow.schema.metadata or {}).get(b"spg")
    if raw is None:
        raise SpgError(f"{path} is a Parquet file but not a manifest of spg-pipe. {again}")
    metadata = json.loads(raw)
    if metadata["format"] != FORMAT:
        raise SpgError(
            f"The manifest {path} has format {metadata['format']}; this version reads format "
            f"{FORMAT}. {again}"
        )
    if missing := [name for name in COLUMNS if name not in arrow.column_names]:
        raise SpgError(f"The manifest {path} has no column {', '.join(missing)}. {again}")
    return arrow.replace_schema_metadata(None).to_pandas(), metadata


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
