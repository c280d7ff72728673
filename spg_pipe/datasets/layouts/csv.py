"""The `csv` layout: a table says which images there are, and what is known of each.

Rules
-----
- The table is the one CSV file of the root with the columns `path` and `label`. Paths are relative
  to the root.
- `label` is 0 or a word for normal images (`good`, `OK`, …), 1 or the name of a defect, or empty.
- Without a label a mask decides: normal if it is empty; without both the image has no label.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel

from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select, entry_of
from spg_pipe.datasets.layouts.table import (
    PathText,
    SomePath,
    Text,
    delimiter_of,
    in_form_of,
    read_table,
)
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_UNKNOWN
from spg_pipe.datasets.masks import is_empty
from spg_pipe.datasets.names import GOOD, is_normal
from spg_pipe.datasets.walk import relative, walk
from spg_pipe.errors import SpgError, counted, listed, noted

_UNCLEAR = frozenset({"true", "false", "yes", "no", "nan", "none", "null", "unknown"})
"""Words that name no defect."""
_FAULTS = {
    "path": "is empty or outside the dataset's folder, or no path",
    "mask": "is outside the dataset's folder, or no path",
    "label": "is neither 0, 1 nor a word for normal images or a defect",
    "category": "is no name",
    "defect": "is no name",
    "split": "is neither train nor test",
}


def _plain_label(label: str) -> str:
    """A label that can have one meaning only; else ValueError."""
    if label in ("", "0", "1") or (label[0].isalpha() and label.lower() not in _UNCLEAR):
        return label
    raise ValueError(label)


class _Row(BaseModel):
    """A line of the table."""

    path: SomePath
    label: Annotated[Text, AfterValidator(_plain_label)]
    mask: PathText = ""
    """A file, or a folder of files that show parts."""
    category: PathText = ""
    """Empty: the folder's name."""
    defect: Text = ""
    """Its kind; empty: what the label says."""
    split: Literal["", "train", "test"] = ""


def scan_csv(root: Path, split: str, select: Select) -> Scan:
    """List the images that the table names; a `Layout.scan`.

    SpgError if there is no table or there are several, a line is malformed, or a file is missing.
    """
    table, walked = _table_of(root), walk(root)
    on_disk = {relative(path, root) for path in walked.images}
    as_here, default = in_form_of(on_disk), root.resolve().name
    lines = read_table(table, _Row, _FAULTS, "Save it as UTF-8, with a header")
    rows = [
        (line, row.model_copy(update={"path": as_here(row.path), "mask": as_here(row.mask)}))
        for line, row in lines
    ]
    missing = [
        f"line {line}: {path}"
        for line, row in rows
        for path, there in (
            (row.path, row.path in on_disk),
            (row.mask, not row.mask or (root / row.mask).exists()),
        )
        if not there
    ]
    if missing:
        raise SpgError(
            f"{table} names {counted(len(missing), 'file')} that {root} has not, or not as an "
            f"image: {listed(missing)}. Correct the lines, or complete the folder."
        )
    named = [(row.category or default, row) for _, row in rows]
    wanted = [(category, row) for category, row in named if select(category)]
    entries = [
        _entry(root, category, row)
        for category, row in wanted
        if split in ("all", row.split or "test")
    ]
    used = {path for _, row in rows for path in (row.path, row.mask)}
    others = [path for path in on_disk if not used & {path, path.rpartition("/")[0]}]
    without = [e.path for e in entries if e.label == LABEL_ANOMALOUS and not e.mask]
    unlabelled = [e.path for e in entries if e.label == LABEL_UNKNOWN]
    notes = [
        *noted(without, "defect image", "without a mask, left out of pixel metrics"),
        *noted(unlabelled, "image", "without a label"),
        *noted(sorted(others), "image", f"not named in {table.name}, ignored"),
        *walked.notes(root, documents=root),
    ]
    return Scan(entries, sorted({category for category, _ in named}), notes)


CSV = Layout(
    "csv",
    "A table of your own images: path, label and mask, optional category, defect and split.",
    """\
ROOT/<any name>.csv                          (path,label,mask,category,defect,split)
ROOT/…                                       (images and masks, as the table names them)""",
    scan_csv,
    own_images=True,
)


def _table_of(root: Path) -> Path:
    """The CSV file of a folder that has the columns `path` and `label`."""
    tables = []
    for path in sorted(root.glob("*.csv")):
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(10_000).strip()
        names = {name.strip(' "') for name in header.split(delimiter_of(header))}
        tables += [path] if {"path", "label"} <= names else []
    if len(tables) == 1:
        return tables[0]
    there = f"there are: {listed([path.name for path in tables])}" if tables else "there is none"
    raise SpgError(
        f"The csv layout needs one file {root / '*.csv'} with the columns path and label; {there}."
    )


def _entry(root: Path, category: str, row: _Row) -> Entry:
    mask = root / row.mask if row.mask else None
    kind = row.defect or (row.label if row.label not in ("", "1") else "defect")
    if row.label == "0" or is_normal(row.label) or (not row.label and mask and is_empty(mask)):
        kind = GOOD
    elif not row.label and not mask:
        kind = ""
    return entry_of(root, category, root / row.path, kind, mask, row.split == "train")
