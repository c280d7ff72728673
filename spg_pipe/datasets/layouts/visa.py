"""The `visa` layout: the official folders of VisA, with its one-class split file.

The split file says which images belong to which split and which mask belongs to which image. Mask
values are 0 to n (one number a defect type); every value above 0 is a defect.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from spg_pipe.datasets.layouts.listing import NO_IMAGE, Entry, Layout, Scan, Select, noted
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL
from spg_pipe.datasets.walk import Inside, files_below, inside, relative
from spg_pipe.errors import SpgError, counted, listed

SPLIT_FILE = "split_csv/1cls.csv"
LABELS = {"normal": LABEL_NORMAL, "anomaly": LABEL_ANOMALOUS}


class _Row(BaseModel):
    """A line of the split file."""

    object: Annotated[str, Field(min_length=1)]
    split: Literal["train", "test"]
    label: Literal["normal", "anomaly"]
    image: Annotated[str, Field(min_length=1), AfterValidator(inside)]
    mask: Inside
    """Of a normal image, and of a defect that has none, empty."""


COLUMNS = tuple(_Row.model_fields)


def scan_visa(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks that the split file names; a `Layout.scan`.

    SpgError if the split file is missing or malformed, no category is there, or a category lacks
    images or masks that the split file names.
    """
    rows = _read_split_file(root)
    objects = sorted({row.object for row in rows})
    on_disk = [name for name in objects if (root / name).is_dir()]
    if not on_disk:
        raise SpgError(
            f"No category of {root / SPLIT_FILE} is in {root}: expected a folder "
            f"<category>/Data/Images for at least one of {listed(objects, 12)}. Check the root."
        )
    wanted = {name for name in on_disk if select(name)}
    of_wanted = [row for row in rows if row.object in wanted]
    entries = [_entry(row) for row in of_wanted if split in ("all", row.split)]
    _require_files(root, entries)
    return Scan(entries, on_disk, _notes(root, objects, on_disk, wanted, of_wanted))


VISA = Layout(
    "visa",
    "VisA's official folders; the split file names splits and masks.",
    """\
ROOT/split_csv/1cls.csv                      (object,split,label,image,mask)
ROOT/<category>/Data/Images/Normal/0000.JPG
ROOT/<category>/Data/Images/Anomaly/000.JPG
ROOT/<category>/Data/Masks/Anomaly/000.png""",
    scan_visa,
)


def _read_split_file(root: Path) -> list[_Row]:
    path = root / SPLIT_FILE
    if not path.is_file():
        raise SpgError(
            f"The visa layout needs {path}, which is not there. The official archive of VisA "
            f"holds it beside the categories. If your copy was converted into train/, test/ and "
            f"ground_truth/ folders, use the mvtec layout instead."
        )
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := [c for c in COLUMNS if c not in (reader.fieldnames or [])]:
                raise SpgError(
                    f"{path} has no column {', '.join(missing)}: expected the header "
                    f"{','.join(COLUMNS)}. Take the file from the official archive of VisA."
                )
            return [_checked(row, path, reader.line_num) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpgError(
            f"{path} cannot be read as a CSV file ({error}). Take the file from the official "
            f"archive of VisA."
        ) from error


def _checked(row: dict[str, str | None], path: Path, line: int) -> _Row:
    try:
        return _Row.model_validate({name: (row[name] or "").strip() for name in COLUMNS})
    except ValidationError as error:
        fault = error.errors()[0]
        raise SpgError(
            f"{path}, line {line}, {fault['loc'][0]} {fault['input']!r}: {fault['msg']}. Take the "
            f"file from the official archive of VisA, or correct the line."
        ) from error


def _entry(row: _Row) -> Entry:
    label = LABELS[row.label]
    return Entry(
        path=row.image,
        category=row.object,
        defect="good" if label == LABEL_NORMAL else "anomaly",
        label=label,
        mask="" if label == LABEL_NORMAL else row.mask,
        train=row.split == "train",
    )


def _require_files(root: Path, entries: Sequence[Entry]) -> None:
    for what, paths in (
        ("image", [e.path for e in entries]),
        ("mask", [e.mask for e in entries if e.mask]),
    ):
        if missing := [p for p in paths if not (root / p).is_file()]:
            several = counted(len(missing), what)
            raise SpgError(
                f"{several} named in {root / SPLIT_FILE} not found in {root}: {listed(missing)}. "
                f"The copy of the dataset is incomplete: unpack the archive again, or remove the "
                f"whole category's folder to leave it out."
            )


def _notes(
    root: Path,
    objects: Sequence[str],
    on_disk: Sequence[str],
    wanted: set[str],
    rows: Sequence[_Row],
) -> list[str]:
    notes = []
    if absent := [name for name in objects if name not in on_disk]:
        notes.append(f"named in {SPLIT_FILE} but not on disk: {listed(absent, 12)}")
    without = [r.image for r in rows if LABELS[r.label] == LABEL_ANOMALOUS and not r.mask]
    notes += noted(without, "defect image", f"without a mask in {SPLIT_FILE}")
    named = {row.image for row in rows}
    extra, others = 0, 0
    for name in sorted(wanted):
        files = files_below(root / name / "Data" / "Images")
        extra += sum(relative(p, root) not in named for p in files.images)
        others += files.others
    notes += noted(extra, "image", f"not named in {SPLIT_FILE}, ignored")
    notes += noted(others, "file", NO_IMAGE)
    return notes
