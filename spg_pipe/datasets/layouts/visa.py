"""The `visa` layout: the official folders of VisA, with its one-class split file.

The split file says which images belong to which split and which mask belongs to which image. Mask
values are 0 to n (one number a defect type); every value above 0 is a defect.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select, entry_of
from spg_pipe.datasets.layouts.table import PathText, SomePath, in_form_of, read_table
from spg_pipe.datasets.names import GOOD
from spg_pipe.datasets.walk import relative, walk
from spg_pipe.errors import SpgError, listed, noted

SPLIT_FILE = "split_csv/1cls.csv"
_FAULTS = {
    "object": "is empty or no folder of the dataset",
    "split": "is neither train nor test",
    "label": "is neither normal nor anomaly",
    "image": "is empty or outside the dataset's folder, or no path",
    "mask": "is outside the dataset's folder, or no path",
}
"""What a value of each column can be that it must not."""


class _Row(BaseModel):
    """A line of the split file."""

    object: SomePath
    split: Literal["train", "test"]
    label: Literal["normal", "anomaly"]
    image: SomePath
    mask: PathText
    """Of a normal image, and of a defect that has none, empty."""


COLUMNS = tuple(_Row.model_fields)


def scan_visa(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks that the split file names; a `Layout.scan`.

    SpgError if the split file is missing or malformed, no category is there, or a category lacks
    images or masks that the split file names.
    """
    rows = _read_split_file(root)
    as_here = in_form_of(path.name for path in root.iterdir())
    objects = {row.object: as_here(row.object) for row in rows}
    on_disk = sorted({name for name in objects.values() if (root / name).is_dir()})
    if not on_disk:
        raise SpgError(
            f"No category of {root / SPLIT_FILE} is in {root}: expected a folder "
            f"<category>/Data/Images for at least one of {listed([*objects], 12)}. Check the root."
        )
    wanted = [name for name in on_disk if select(name)]
    walks = [walk(root / name / "Data") for name in wanted]
    names = {relative(path, root) for walked in walks for path in walked.images}
    as_here = in_form_of(names)
    rows = [
        row.model_copy(
            update={"object": name, "image": as_here(row.image), "mask": as_here(row.mask)}
        )
        for row in rows
        if (name := objects[row.object]) in wanted
    ]
    entries = [_entry(root, row) for row in rows if split in ("all", row.split)]
    named = {"image": [e.path for e in entries], "mask": [e.mask for e in entries if e.mask]}
    for what, paths in named.items():
        if missing := [path for path in paths if not (root / path).is_file()]:
            not_found = f"named in {root / SPLIT_FILE} not found in {root}"
            raise SpgError(
                f"{noted(missing, what, not_found)[0]}. The copy of the dataset is incomplete: "
                f"unpack the archive again, or remove the whole category's folder to leave it out."
            )
    absent = sorted(name for name, here in objects.items() if here not in on_disk)
    without = [row.image for row in rows if row.label == "anomaly" and not row.mask]
    unnamed = sorted(names - {path for row in rows for path in (row.image, row.mask)})
    notes = [
        *([f"named in {SPLIT_FILE} but not on disk: {listed(absent, 12)}"] if absent else []),
        *noted(without, "defect image", f"without a mask in {SPLIT_FILE}"),
        *noted(unnamed, "image", f"not named in {SPLIT_FILE}, ignored"),
        *(note for walked in walks for note in walked.notes(root)),
    ]
    return Scan(entries, on_disk, notes)


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
            f"holds it beside the categories. Without it, use the layout folder with the root "
            f"{root}: it reads Data/Images/ and Data/Masks/ too, without the splits."
        )
    archive = "Take the file from the official archive of VisA"
    return [row for _, row in read_table(path, _Row, _FAULTS, archive)]


def _entry(root: Path, row: _Row) -> Entry:
    kind = GOOD if row.label == "normal" else "anomaly"
    mask = root / row.mask if row.mask else None
    return entry_of(root, row.object, root / row.image, kind, mask, row.split == "train")
