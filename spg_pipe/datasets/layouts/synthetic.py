"""The `synthetic` layout: what `spg-pipe synthesise` writes, read by its own record.

The record names every image, so a folder that looks alike is not taken for a synthetic set, and a
file that nobody recorded is not taken for an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from spg_pipe.artefacts.record import Record, read_record
from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select, noted, source_id
from spg_pipe.datasets.layouts.mvtec import GOOD
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL
from spg_pipe.datasets.walk import files_below, relative
from spg_pipe.errors import SpgError, counted, listed
from spg_pipe.recipe.data import DefectKind

RECORD = "synthetic.json"
KIND: Literal["synthetic set"] = "synthetic set"
AGAIN = "spg-pipe synthesise"

_Folder = Annotated[str, Field(pattern=r"^[^./\\\x00][^/\\\x00]*$")]
"""Looser than `Name`: a category is called as its folder was, blanks and all, but is one folder."""
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Settings(Record):
    """What `synthesise` was told."""

    seed: int
    per_image: int
    kinds: tuple[DefectKind, ...]


class Source(Record):
    """The normal images."""

    layout: str
    split: str
    exif: bool
    licences: tuple[str, ...]
    images: dict[str, _Sha256]
    """Path in the source's folder → SHA-256 of its bytes."""


class Row(Record):
    """An image of the set. Paths are posix and relative to the set's folder."""

    path: str
    mask: str
    """Empty for a normal image."""
    category: _Folder
    defect: DefectKind | Literal["good"]
    source: str
    """A key of `Source.images`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.defect == GOOD) == bool(self.mask):
            expected = "no mask" if self.defect == GOOD else "a mask"
            raise ValueError(f"{self.path}: found mask {self.mask!r}, {self.defect} has {expected}")
        for path, kind in ((self.path, "images"), (self.mask, "masks")):
            folder = f"{kind}/{self.category}/{self.defect}"
            if path and path.rpartition("/")[0] != folder:
                raise ValueError(f"names a file outside {folder}: {path}")
        return self


class SyntheticRecord(Record):
    """synthetic.json, every key of it."""

    kind: Literal["synthetic set"] = KIND
    format: Literal[1] = 1
    generator: int
    settings: Settings
    licence: str
    source: Source
    images: tuple[Row, ...]
    fingerprint: str = ""
    files_sha256: dict[str, _Sha256]
    """Path → SHA-256 of every image and mask."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        named = {path for row in self.images for path in (row.path, row.mask) if path}
        if odd := sorted(named ^ set(self.files_sha256)):
            raise ValueError(f"not named both with an image and with a SHA-256: {listed(odd)}")
        if unknown := sorted({row.source for row in self.images} - set(self.source.images)):
            raise ValueError(f"made from what is no source image: {listed(unknown)}")
        return self


def read_synthetic(root: Path) -> SyntheticRecord:
    """What a synthetic set says of itself.

    Raises
    ------
    SpgError
        There is no record, it is of another format, or it was edited or damaged.
    """
    if not (root / RECORD).is_file():
        raise SpgError(
            f"{root} is no synthetic set: it has no {RECORD}. Make one with "
            f"`{AGAIN} SOURCE {root}`, or name the layout that these images are in."
        )
    return read_record(root / RECORD, SyntheticRecord, KIND, AGAIN)


def scan_synthetic(root: Path, _split: str, select: Select) -> Scan:
    """List a synthetic set's images and masks, with the digests that their bytes must give.

    Raises
    ------
    SpgError
        The folder is no synthetic set, or not a whole one.
    """
    record = read_synthetic(root)
    files, rows = record.files_sha256, record.images
    on_disk = {relative(p, root) for p in files_below(root).images}
    if missing := [path for path in files if path not in on_disk]:
        raise SpgError(
            f"{root} is not a whole synthetic set: {counted(len(missing), 'file')} missing, "
            f"{listed(missing)}. Copy it again, or run `{AGAIN}` again."
        )
    extra = noted(sorted(on_disk - set(files)), "image", "not of the set, ignored")
    notes = [_synthetic_note(record), *extra]
    entries = [
        Entry(
            path=row.path,
            category=row.category,
            defect=row.defect,
            label=LABEL_NORMAL if row.defect == GOOD else LABEL_ANOMALOUS,
            mask=row.mask,
            sha256=files[row.path],
            mask_sha256=files.get(row.mask, ""),
            source=source_id(record.source.images[row.source]),
        )
        for row in rows
        if select(row.category)
    ]
    categories = sorted({row.category for row in rows})
    return Scan(entries, categories, notes, licence=record.licence)


SYNTHETIC = Layout(
    "synthetic",
    "What `spg-pipe synthesise` makes of normal images: copies with painted defects and masks.",
    """\
ROOT/synthetic.json                          (names every image)
ROOT/images/<category>/good/00000.png
ROOT/images/<category>/<kind>/00000-0.png
ROOT/masks/<category>/<kind>/00000-0.png""",
    scan_synthetic,
    splits=False,
)


def _synthetic_note(record: SyntheticRecord) -> str:
    settings = record.settings
    return (
        f"synthetic defects ({', '.join(settings.kinds)}; seed {settings.seed}) on "
        f"{counted(len(record.source.images), 'normal image')}: no real defect is in this "
        f"set, and figures on it say little about real ones"
    )
