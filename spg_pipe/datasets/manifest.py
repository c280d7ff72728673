"""The Manifest: which images a dataset split has, and what is known about each.

One row an image, in an order that depends on names alone, so that two machines with the same
files write the same bytes. Paths are relative; the folder they start from is not part of it.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import SerializerFunctionWrapHandler, model_serializer

from spg_pipe.artefacts.files import fingerprint, write_bytes
from spg_pipe.artefacts.reading import damaged, reading
from spg_pipe.artefacts.record import Inside, Record, inside, parse_record
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.files import mask_files, read_file, sha256_now

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

AGAIN = "spg-pipe prepare"
LABEL_NORMAL, LABEL_ANOMALOUS, LABEL_UNKNOWN = 0, 1, 255
_NAMED = 5
"""Of images that were left out: how many a note names."""


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


class Skipped(Record):
    """An image that could not be used, alone or with its mask. Paths are relative to the root."""

    path: Inside
    mask: Inside
    """Empty if it has none."""
    sha256: str
    """Of the bytes of the image and its mask, one after the other; empty if one is missing."""
    reason: str
    """What is wrong, as the end of a sentence that begins with the path."""

    @classmethod
    def of(cls, root: Path, path: str, mask: str, reason: str) -> Self:
        """The record of an image below `root`, with the content that it has now."""
        sha256 = _content_hash(root, path, mask)
        return cls(path=path, mask=mask, sha256=sha256, reason=reason)

    def unchanged(self, root: Path) -> bool:
        """Whether the files below `root` are still those that could not be used."""
        return _content_hash(root, self.path, self.mask) == self.sha256

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def skipped_notes(skipped: Sequence[Skipped]) -> list[str]:
    """What was left out, in a line: the first few images, each with its reason; none of nothing."""
    what = f"{counted(len(skipped), 'image')} left out (skip_bad)"
    return [f"{what}: {'; '.join(first_of(skipped))}"] if skipped else []


def first_of(skipped: Sequence[Skipped]) -> list[str]:
    """The first few images, each with its reason, and how many more there are."""
    more = [f"and {len(skipped) - _NAMED} more"] if len(skipped) > _NAMED else []
    return [*map(str, skipped[:_NAMED]), *more]


def _content_hash(root: Path, path: str, mask: str) -> str:
    """SHA-256 of an image and its mask; empty if one is missing. SpgError if one cannot be read."""
    files = [root / path, *(mask_files(root / mask) if mask else ())]
    if not all(file.is_file() for file in files):  # a pipe or a device would never end
        return ""
    return hashlib.sha256(b"".join(read_file(file, "image") for file in files)).hexdigest()


class ManifestRecord(Record):
    """What a manifest's file says beside its rows.

    No library's version is among it: the same images give the same bytes on any machine.
    """

    BESIDE: ClassVar[frozenset[str]] = frozenset(
        {"fingerprint", "notes", "skipped", "selection", "sources"}
    )
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"white"})
    kind: Literal["manifest"] = "manifest"
    format: Literal[2] = 2
    dataset: str
    split: str
    layout: str
    exif: bool
    white: int | None = None
    licences: tuple[str, ...]
    rows_sha256: str
    """Of the canonical JSON of all rows."""
    fingerprint: str = ""
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    selection: dict[str, object]
    sources: dict[str, str]

    @model_serializer(mode="wrap")
    def _as_json(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Without `white` where it does not apply, so that those manifests keep their bytes."""
        left_out = {"white"} if self.white is None else set()
        return {name: value for name, value in plain(self).items() if name not in left_out}


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
    """Its name, as a recipe gives it."""
    root: Path
    """Where the relative paths start. Neither saved nor part of the fingerprint."""
    table: "pd.DataFrame"
    """One row an image; columns and types as in `COLUMNS`."""
    licences: tuple[str, ...]
    """The licence of each set of images, for example `VisA: CC BY 4.0`."""
    notes: tuple[str, ...]
    """What a person should know: missing categories, other counts than the official ones."""
    exif: bool
    """Whether EXIF orientation is honoured, for image and mask alike (docs/method.md §5)."""
    white: int | None = None
    """White of 16-bit images whose files do not say it, by the values of the set; None: 65535."""
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

    def require_unchanged(self, index: int) -> None:
        """Raise an `SpgError` if image `index` or its mask is another than was listed.

        To be called after both were read: what was read is then what the fingerprint is of.
        """
        row = self.table.iloc[index]
        for what, file, digest in (
            ("image", row["path"], row["sha256"]),
            ("mask", row["mask"], row["mask_sha256"]),
        ):
            if file and sha256_now(self.root / file, what) != digest:
                raise SpgError(
                    f"The {what} {self.root / file} was changed since it was listed. When nobody "
                    f"writes there any more, list it again: `{AGAIN}`, and give the command again."
                )

    def spread(self, limit: int) -> Self:
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

    def without(self, paths: Collection[str]) -> Self:
        """The same without some images, as if their files were not there."""
        table = self.table[~self.table["path"].isin(list(paths))].reset_index(drop=True)
        return replace(self, table=table)

    def fingerprint(self) -> str:
        """Sha256 (hex) of what determines the content: every row, the policy and the licences.

        Neither the root nor the notes take part, nor what was skipped: without a damaged file the
        dataset is the same as with it left out.
        """
        return self._record().fingerprint

    def _record(self) -> ManifestRecord:
        shared = {name: getattr(self, name) for name in _SHARED} | {"sources": self.own_sources}
        return ManifestRecord(rows_sha256=_rows_sha256(self.table), **shared).sealed()

    def save(self, path: Path) -> None:
        """Write a Parquet file (zstd); the same content gives the same bytes.

        The file appears whole or not at all.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        # No pandas metadata: it names versions.
        rows = pa.Table.from_pandas(
            self.table[list(COLUMNS)], schema=_schema(), preserve_index=False
        ).replace_schema_metadata({b"spg": self._record().model_dump_json().encode()})
        file = BytesIO()
        pq.write_table(rows, file, compression="zstd")
        write_bytes(path, file.getbuffer())

    @classmethod
    def load(cls, path: Path, root: Path) -> Self:
        """Read a manifest; `root` is the folder where its relative paths start.

        SpgError if the file is missing, damaged, of another format, was edited, or lists files
        outside the root.
        """
        if not path.is_file():
            raise SpgError(f"There is no manifest at {path}. Make it with `{AGAIN}`.")
        with reading(path, "manifest", AGAIN):
            import pyarrow.parquet as pq

            arrow = pq.read_table(path)
        raw = (arrow.schema.metadata or {}).get(b"spg")
        if raw is None:
            fault = "it is a Parquet file, but not of spg-pipe"
            raise damaged(path, "manifest", fault, AGAIN)
        record = parse_record(raw, path, ManifestRecord, "manifest", AGAIN)
        if missing := [name for name in COLUMNS if name not in arrow.column_names]:
            raise damaged(path, "manifest", f"it has no column {', '.join(missing)}", AGAIN)
        with reading(path, "manifest", AGAIN):
            rows = arrow.select(list(COLUMNS)).cast(_schema())
            table = rows.replace_schema_metadata(None).to_pandas()
            _require_rows(table)
        if _rows_sha256(table) != record.rows_sha256:
            raise damaged(path, "manifest", "its rows were edited or damaged", AGAIN)
        return cls(root=root, table=table, **{name: getattr(record, name) for name in _SHARED})


_SHARED = tuple(f.name for f in fields(Manifest) if f.name not in ("root", "table"))
"""What a manifest and its record both hold."""


def _spread_rows(groups: Sequence[tuple[str, int]], limit: int) -> list[int]:
    """Rows in order, `limit` of them: of each group its share, evenly spaced within it."""
    members: dict[tuple[str, int], list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    if limit < len(members):
        return _spaced([rows[0] for rows in members.values()], limit)
    share = dict.fromkeys(members, 1)
    for _ in range(limit - len(members)):
        # Sainte-Laguë: shares as near to the true proportions as whole images allow.
        neediest = max(members, key=lambda g: len(members[g]) / (2 * share[g] + 1))
        share[neediest] += 1
    return sorted(row for group, rows in members.items() for row in _spaced(rows, share[group]))


def _spaced(rows: Sequence[int], count: int) -> list[int]:
    """`count` of the rows, in the middle of equal parts."""
    return [rows[(2 * part + 1) * len(rows) // (2 * count)] for part in range(count)]


def to_frame(rows: Sequence[dict[str, object]]) -> "pd.DataFrame":
    """Rows with the keys of `COLUMNS` as a table with its types."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=_schema()).to_pandas()


def _schema() -> "pa.Schema":
    import pyarrow as pa

    types = {"string": pa.string(), "uint8": pa.uint8(), "int32": pa.int32()}
    return pa.schema([pa.field(n, types[t], nullable=False) for n, t in COLUMNS.items()])


def _require_rows(table: "pd.DataFrame") -> None:
    """Raise a ValueError for values that no `prepare` writes: anybody may have written a row."""
    for path in (*table["path"], *table["mask"]):
        inside(path)
    known = {
        "label": (LABEL_NORMAL, LABEL_ANOMALOUS, LABEL_UNKNOWN),
        "mask_state": tuple(MaskState),
    }
    for name, values in known.items():
        if not table[name].isin(values).all():
            raise ValueError(f"{name} is not one of {', '.join(map(str, map(int, values)))}")
    if (table[["height", "width"]] < 1).any(axis=None):
        raise ValueError("an image has no pixels")
    if (table["path"] == "").any() or table["path"].duplicated().any():
        raise ValueError("an image has no path, or that of another")


def _rows_sha256(table: "pd.DataFrame") -> str:
    return fingerprint({name: table[name].tolist() for name in COLUMNS})
