"""The `synthetic` layout: what `spg-pipe synthesise` writes, read by its own record.

    <root>/synthetic.json
    <root>/images/<category>/good/<number>.png
    <root>/images/<category>/<kind>/<number>-<n>.png
    <root>/masks/<category>/<kind>/<number>-<n>.png

The record names every image, so a folder that looks alike is not taken for a synthetic set, and a
file that nobody recorded is not taken for an image. There are no splits: `test` and `all` both
mean every image.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from spg_pipe.artifacts import read_json
from spg_pipe.datasets.listing import Entry, Scan, Select, counted, files_below, listed
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL
from spg_pipe.datasets.mvtec import GOOD
from spg_pipe.digests import require_fingerprint
from spg_pipe.errors import SpgError

RECORD = "synthetic.json"
KIND = "synthetic set"
FORMAT = 1
"""Of the record and the folders; a reader refuses any other."""
AGAIN = "spg-pipe synthesise"


def read_record(root: Path) -> dict[str, Any]:
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
    record = read_json(root / RECORD, KIND.capitalize())
    if record.get("kind") != KIND or record.get("format") != FORMAT:
        raise SpgError(
            f"{root / RECORD} says {record.get('kind')!r}, format {record.get('format')!r}; this "
            f"version reads {KIND!r}, format {FORMAT}. Make the set again with `{AGAIN}`."
        )
    require_fingerprint(root, record, KIND, AGAIN)
    return record


def scan_synthetic(root: Path, split: str, select: Select) -> Scan:
    """List a synthetic set's images and masks.

    Raises
    ------
    SpgError
        The folder is no synthetic set, or not a whole one; or the split is `train`.
    """
    if split == "train":
        raise SpgError(
            f"{root} has the synthetic layout, which knows no training split: use the split "
            f"`test` or `all` (both mean every image)."
        )
    record = read_record(root)
    rows = record["images"]
    named = [path for row in rows for path in (row["path"], row["mask"]) if path]
    if outside := [p for p in named if PurePosixPath(p).is_absolute() or ".." in p.split("/")]:
        raise SpgError(f"{root / RECORD} names files outside its folder: {listed(outside)}.")
    on_disk = {p.relative_to(root).as_posix() for p in files_below(root).images}
    if missing := [path for path in named if path not in on_disk]:
        raise SpgError(
            f"{root} is not a whole synthetic set: {counted(len(missing), 'file')} missing, "
            f"{listed(missing)}. Copy it again, or run `{AGAIN}` again."
        )
    notes = [_synthetic_note(record)]
    if extra := sorted(on_disk - set(named)):
        notes.append(f"{counted(len(extra), 'image')} not of the set, ignored: {listed(extra)}")
    entries = [
        Entry(
            path=row["path"],
            category=row["category"],
            defect=row["defect"],
            label=LABEL_NORMAL if row["defect"] == GOOD else LABEL_ANOMALOUS,
            mask=row["mask"],
        )
        for row in rows
        if select(row["category"])
    ]
    categories = sorted({row["category"] for row in rows})
    return Scan(entries, categories, notes, licence=record["licence"])


def _synthetic_note(record: dict[str, Any]) -> str:
    settings = record["settings"]
    return (
        f"synthetic defects ({', '.join(settings['kinds'])}; seed {settings['seed']}) on "
        f"{counted(len(record['source']['images']), 'normal image')}: no real defect is in this "
        f"set, and figures on it say little about real ones"
    )
