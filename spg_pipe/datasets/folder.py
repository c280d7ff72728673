"""The `folder` layout: a person's own images, with as much labelling as there is.

    <root>/*.png                               images without labels
    <root>/good/*.png                          normal images
    <root>/<defect>/*.png                      defect images, masks optional, at one of:
        <root>/ground_truth/<defect>/<stem>_mask.png   (or <stem>.png; also masks/<defect>/)
        <root>/<defect>/<stem>_mask.png

Rules
-----
- Subfolders are classes when something says so: a folder `good`, `ground_truth` or `masks`, or a
  mask beside an image. Otherwise the images in them, at any depth, have no labels.
- A class folder is searched at any depth. An image directly in the root has no label, unless its
  mask lies beside it (then its defect is called `defect`).
- A defect image without a mask is MISSING: it counts for the image score only.
- The category is the folder's name. When every subfolder holds its own `good/`, each of them is a
  category instead.
- There are no splits: `test` and `all` both mean every image.
- EXIF orientation is honoured, for image and mask alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.listing import (
    Entry,
    Scan,
    Select,
    counted,
    files_below,
    files_in,
    listed,
    subfolders,
)
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.mvtec import GOOD, match_masks
from spg_pipe.errors import SpgError

MASK_FOLDERS = ("ground_truth", "masks")
NOT_DEFECTS = frozenset({"normal", "ok", "no_defect", "defect_free", "nominal"})


class _Class(NamedTuple):
    """Images that share a label, with the masks found for them."""

    defect: str
    label: int
    pairs: dict[Path, Path | None]
    extra_masks: list[Path]


def scan_folder(root: Path, split: str, select: Select) -> Scan:
    """Find a person's images and what is known about them (rules: this module's text).

    Raises
    ------
    SpgError
        The folder holds no images, or looks like another layout, or its labels are ambiguous.
    """
    if split == "train":
        raise SpgError(
            f"{root} has the folder layout, which knows no training split: use the split `test` "
            f"or `all` (both mean every image)."
        )
    _refuse_other_layouts(root)
    folders = _category_folders(root)
    entries: list[Entry] = []
    notes: list[str] = []
    names = {folder: folder.resolve().name for folder in folders}
    for folder in folders:
        if select(names[folder]):
            _scan_category(root, folder, names[folder], entries, notes)
    if not entries and all(select(name) for name in names.values()):
        raise SpgError(
            f"No images in {root}: expected image files, in it or in subfolders such as good/ "
            f"and one folder for each defect. {' '.join(notes)}".rstrip()
        )
    return Scan(entries, sorted(names.values()), notes)


def _category_folders(root: Path) -> list[Path]:
    """The root itself, or its subfolders when each of them holds its own good/."""
    folders = subfolders(root)
    inner = [f for f in folders if (f / GOOD).is_dir()]
    if not inner or (root / GOOD).is_dir():
        return [root]
    loose = [f.name for f in folders if f not in inner]
    if loose or files_in(root).images:
        what = f"the folders {listed(loose)}" if loose else "images of its own"
        raise SpgError(
            f"{root} is ambiguous: {inner[0].name}/good makes {inner[0].name} a category, but "
            f"there are also {what} without a good/ folder. Give the root of one category, or "
            f"move what does not belong there."
        )
    return inner


def _scan_category(
    root: Path, folder: Path, name: str, entries: list[Entry], notes: list[str]
) -> None:
    everything = files_below(folder)
    classes = _classes(folder)
    found = 0
    for kind in classes:
        for image, mask in kind.pairs.items():
            found += 1
            entries.append(
                Entry(
                    path=image.relative_to(root).as_posix(),
                    category=name,
                    defect=kind.defect,
                    label=kind.label,
                    mask=mask.relative_to(root).as_posix() if mask else "",
                )
            )
    masks = [m for kind in classes for m in kind.pairs.values() if m]
    if lossy := [m for m in masks if m.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")]:
        notes.append(
            f"{name}: {counted(len(lossy), 'mask')} stored as JPEG, whose compression noise "
            f"counts as defect (every value above 0 does): use PNG"
        )
    if extra := [m.relative_to(root).as_posix() for kind in classes for m in kind.extra_masks]:
        several = counted(len(extra), "mask")
        notes.append(f"{name}: {several} without an image, ignored: {listed(extra)}")
    without = sum(
        not mask for k in classes if k.label == LABEL_ANOMALOUS for mask in k.pairs.values()
    )
    if without:
        several = counted(without, "defect image")
        notes.append(f"{name}: {several} without a mask, left out of pixel metrics")
    if unlabelled := sum(len(k.pairs) for k in classes if k.label == LABEL_UNKNOWN):
        notes.append(f"{name}: {counted(unlabelled, 'image')} without a label")
    if everything.others:
        notes.append(f"{name}: {counted(everything.others, 'file')} that are no images ignored")


def _classes(folder: Path) -> list[_Class]:
    """All images of one category, by class."""
    kinds = [f for f in subfolders(folder) if f.name not in MASK_FOLDERS]
    masked_inside = any(_split_beside(files_below(f).images)[1] for f in kinds)
    if (
        not (folder / GOOD).is_dir()
        and not any((folder / m).is_dir() for m in MASK_FOLDERS)
        and not masked_inside
    ):
        images, masks = _split_beside(files_below(folder).images)
        return _loose(images, masks)
    if odd := [f.name for f in kinds if f.name.lower() in NOT_DEFECTS]:
        raise SpgError(
            f"The folder {odd[0]} in {folder} would be taken for a defect: normal images belong "
            f"in a folder called `{GOOD}`. Rename it."
        )
    images, masks = _split_beside(files_in(folder).images)
    return _loose(images, masks) + [_class(folder, kind) for kind in kinds]


def _loose(images: Sequence[Path], masks: Sequence[Path]) -> list[_Class]:
    """Images outside of class folders: a defect where a mask lies beside, else unlabelled."""
    pairs = _match_by_folder(images, {p: p.parent for p in images}, masks)[0]
    with_mask = {image: mask for image, mask in pairs.items() if mask}
    without = {image: None for image, mask in pairs.items() if not mask}
    return [
        _Class("defect", LABEL_ANOMALOUS, dict(with_mask), []),
        _Class("", LABEL_UNKNOWN, dict(without), []),
    ]


def _class(folder: Path, kind: Path) -> _Class:
    """One class folder: good, or a defect with masks in a mask folder or beside the images."""
    images, beside = _split_beside(files_below(kind).images)
    if kind.name == GOOD:
        return _Class(GOOD, LABEL_NORMAL, dict.fromkeys(images), beside)
    masks = [m for name in MASK_FOLDERS for m in files_below(folder / name / kind.name).images]
    return _Class(kind.name, LABEL_ANOMALOUS, {}, [])
