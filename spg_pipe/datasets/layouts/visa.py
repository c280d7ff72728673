"""The `visa` layout: the official folders of VisA, with its one-class split file.

The split file says which images belong to which split and which mask belongs to which image. Mask
values are 0 to n (one number a defect type); every value above 0 is a defect.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL
from spg_pipe.datasets.walk import files_below, relative
from spg_pipe.errors import SpgError, counted, listed

SPLIT_FILE = "split_csv/1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
LABELS = {"normal": LABEL_NORMAL, "anomaly": LABEL_ANOMALOUS}

Row = dict[str, str]


def scan_visa(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks that the split file names; a `Layout.scan`.

    Raises
    ------
    SpgError
        The split file is missing or malformed, no category is there, or a category lacks images
        or masks that the split file names.
    """
    rows = _read_split_file(root)
    objects = sorted({row["object"] for row in rows})
    on_disk = [name for name in objects if (root / name).is_dir()]
    if not on_disk:
        raise SpgError(
            f"No category of {root / SPLIT_FILE} is in {root}: expected a folder "
            f"<category>/Data/Images for at least one of {listed(objects, 12)}. Check the root."
        )
    wanted = {name for name in on_disk if select(name)}
    of_wanted = [row for row in rows if row["object"] in wanted]
    entries = [_entry(row) for row in of_wanted if split in ("all", row["split"])]
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


def _read_split_file(root: Path) -> list[Row]:
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


def _checked(row: Row, path: Path, line: int) -> Row:
    """The row without surrounding blanks, or an SpgError that names its line."""
    row = {name: (row[name] or "").strip() for name in COLUMNS}
    problem = ""
    if row["label"] not in LABELS:
        problem = f"the label {row['label']!r} is neither normal nor anomaly"
    elif row["split"] not in ("train", "test"):
        problem = f"the split {row['split']!r} is neither train nor test"
    elif not row["object"] or not row["image"]:
        problem = "the object or the image is empty"
    for name in ("image", "mask"):
        parts = PurePosixPath(row[name])
        if parts.is_absolute() or ".." in parts.parts:
            problem = f"the {name} {row[name]!r} is outside the dataset's folder"
    if problem:
        raise SpgError(
            f"{path}, line {line}: {problem}. Take the file from the official archive of VisA, "
            f"or correct the line."
        )
    return row


def _entry(row: Row) -> Entry:
    label = LABELS[row["label"]]
    return Entry(
        path=row["image"],
        category=row["object"],
        defect="good" if label == LABEL_NORMAL else "anomaly",
        label=label,
        mask="" if label == LABEL_NORMAL else row["mask"],
        train=row["split"] == "train",
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
    rows: Sequence[Row],
) -> list[str]:
    notes = []
    if absent := [name for name in objects if name not in on_disk]:
        notes.append(f"named in {SPLIT_FILE} but not on disk: {listed(absent, 12)}")
    without = [r["image"] for r in rows if LABELS[r["label"]] == LABEL_ANOMALOUS and not r["mask"]]
    if without:
        several = counted(len(without), "defect image")
        notes.append(f"{several} without a mask in {SPLIT_FILE}: {listed(without)}")
    named = {row["image"] for row in rows}
    extra, others = 0, 0
    for name in sorted(wanted):
        files = files_below(root / name / "Data" / "Images")
        extra += sum(relative(p, root) not in named for p in files.images)
        others += files.others
    if extra:
        notes.append(f"{counted(extra, 'image')} not named in {SPLIT_FILE}, ignored")
    if others:
        notes.append(f"{counted(others, 'file')} ignored: not an image file")
    return notes
