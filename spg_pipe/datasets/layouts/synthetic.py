"""The `synthetic` layout: what `spg-pipe synthesise` writes, read by its own record.

The record names every image, so a folder that looks alike is not taken for a synthetic set, and a
file that nobody recorded is not taken for an image.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from spg_pipe.artefacts.record import Record, read_record
from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL
from spg_pipe.datasets.names import GOOD
from spg_pipe.datasets.walk import SYNTHETIC_RECORD, relative, walk
from spg_pipe.errors import SpgError, counted, listed, noted
from spg_pipe.images.files import source_id
from spg_pipe.recipe.data import KINDS, DefectKind

RECORD = SYNTHETIC_RECORD
KIND: Literal["synthetic set"] = "synthetic set"
AGAIN = "spg-pipe synthesise"

_NAME = r"[^./\\\x00][^/\\\x00]*"
"""Looser than a recipe's `Name`: a category is called as its folder was, blanks and all."""
_Image = Annotated[str, Field(pattern=rf"^images/{_NAME}/({'|'.join((GOOD, *KINDS))})/{_NAME}$")]
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


class SyntheticRecord(Record):
    """synthetic.json, every key of it. Paths are posix and relative to the set's folder."""

    kind: Literal["synthetic set"] = KIND
    format: Literal[2] = 2
    generator: int
    settings: Settings
    licence: str
    source: Source
    images: dict[_Image, str]
    """`images/<category>/<kind>/<name>` → the source image (of `Source.images`) behind it."""
    fingerprint: str = ""
    files_sha256: dict[str, _Sha256]
    """Path → SHA-256 of every image and mask."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        named = {*self.images, *map(mask_of, self.images)} - {""}
        if odd := sorted(named ^ set(self.files_sha256)):
            raise ValueError(f"not named both with an image and with a SHA-256: {listed(odd)}")
        if unknown := sorted(set(self.images.values()) - set(self.source.images)):
            raise ValueError(f"made from what is no source image: {listed(unknown)}")
        return self


def mask_of(image: str) -> str:
    """Path of the mask of an image of the set; empty for a normal one."""
    _, category, kind, name = image.split("/")
    return "" if kind == GOOD else f"masks/{category}/{kind}/{name}"


def read_synthetic(root: Path) -> SyntheticRecord:
    """What a synthetic set says of itself; SpgError without a whole record of this format."""
    return read_record(root / RECORD, SyntheticRecord, KIND, AGAIN)


def scan_synthetic(root: Path, _split: str, select: Select) -> Scan:
    """List a synthetic set's images and masks, with the digests that their bytes must give.

    SpgError if the folder is no synthetic set, or not a whole one.
    """
    record = read_synthetic(root)
    files = record.files_sha256
    on_disk = {relative(path, root) for path in walk(root).images}
    if missing := [path for path in files if path not in on_disk]:
        raise SpgError(
            f"{root} is not a whole synthetic set: {counted(len(missing), 'file')} missing, "
            f"{listed(missing)}. Copy it again, or run `{AGAIN}` again."
        )
    extra = noted(sorted(on_disk - set(files)), "image", "not of the set, ignored")
    settings = record.settings
    note = (
        f"synthetic defects ({', '.join(settings.kinds)}; seed {settings.seed}) on "
        f"{counted(len(record.source.images), 'normal image')}: no real defect is in this "
        f"set, and figures on it say little about real ones"
    )
    entries = [
        Entry(
            path=path,
            category=category,
            defect=kind,
            label=LABEL_NORMAL if kind == GOOD else LABEL_ANOMALOUS,
            mask=mask_of(path),
            sha256=files[path],
            mask_sha256=files.get(mask_of(path), ""),
            source=source_id(record.source.images[source]),
        )
        for path, source in record.images.items()
        for _, category, kind, _ in [path.split("/")]
        if select(category)
    ]
    categories = sorted({path.split("/")[1] for path in record.images})
    return Scan(entries, categories, [note, *extra], licence=record.licence)


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
