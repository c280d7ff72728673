"""The `folder` layout: a person's own images, with as much labelling as there is.

Rules
-----
- Subfolders are classes when something says so: a folder `good`, `ground_truth` or `masks`, or a
  mask beside an image. Otherwise the images in them, at any depth, have no labels.
- A class folder is searched at any depth. An image directly in the root has no label, unless its
  mask lies beside it (then its defect is called `defect`).
- A defect image without a mask is MISSING: it counts for the image score only.
- The category is the folder's name. When every subfolder holds its own `good/`, each of them is a
  category instead.
- `Good`, `ok`, `pass`, … are not taken for defects but refused: normal images are in `good`.
- EXIF orientation is honoured unless the protocol ignores it, for image and mask alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.layouts.listing import NO_IMAGE, Entry, Layout, Scan, Select, noted
from spg_pipe.datasets.layouts.mvtec import GOOD, match_masks
from spg_pipe.datasets.layouts.synthetic import RECORD
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.walk import files_below, files_in, relative, subfolders
from spg_pipe.errors import SpgError, listed

MASK_FOLDERS = ("ground_truth", "masks")
NOT_DEFECTS = frozenset(
    {"goods", "normal", "nominal", "ok", "okay", "pass", "passed", "no_defect", "defect_free"}
)
"""Names that say `good` in other words; case, hyphens and surrounding space do not matter."""


class _Class(NamedTuple):
    """Images that share a label, with the mask found for each (None: none)."""

    defect: str
    label: int
    pairs: dict[Path, Path | None]
    extra_masks: list[Path]


def scan_folder(root: Path, _split: str, select: Select) -> Scan:
    """Find a person's images and what is known about them (rules: this module's text).

    SpgError if the folder holds none, looks like another layout, or its labels are ambiguous.
    """
    _refuse_other_layouts(root)
    folders = {f.resolve().name: f for f in _category_folders(root)}
    entries: list[Entry] = []
    notes: list[str] = []
    for name, folder in folders.items():
        if select(name):
            classes = _classes(folder)
            entries += [entry for kind in classes for entry in _entries(root, name, kind)]
            notes += [f"{name}: {note}" for note in _notes(root, folder, classes)]
    if not entries and any(select(name) for name in folders):
        raise SpgError(
            f"No images in {root}: expected image files, in it or in subfolders such as good/ "
            f"and one folder for each defect."
        )
    return Scan(entries, sorted(folders), notes)


FOLDER = Layout(
    "folder",
    "Your own images: good/ and one folder for each defect, masks optional; or just images "
    "without labels, at any depth.",
    """\
ROOT/*.jpg                                   (no labels)
ROOT/good/*.jpg
ROOT/<defect>/*.jpg
ROOT/ground_truth/<defect>/<stem>_mask.png   (optional; or masks/<defect>/)
ROOT/<defect>/<stem>_mask.png                (or beside the image)""",
    scan_folder,
    own_images=True,
    splits=False,
)


def _refuse_other_layouts(root: Path) -> None:
    for folder in (root, *subfolders(root)):
        official = any((folder / part / GOOD).is_dir() for part in ("train", "test"))
        if official or ((folder / "test").is_dir() and (folder / "ground_truth").is_dir()):
            start = root.resolve().parent if folder == root else root
            raise SpgError(
                f"{folder} holds train/ or test/ folders: this is the mvtec layout, not a plain "
                f"folder. Use the layout mvtec with the root {start}."
            )
    if (root / RECORD).is_file():
        raise SpgError(
            f"{root} holds {RECORD}: this is a synthetic set. Use the layout synthetic, or "
            "name a folder of your own images."
        )
    if (root / "split_csv").is_dir():
        raise SpgError(f"{root} holds split_csv/: this is the visa layout. Use the layout visa.")


def _category_folders(root: Path) -> list[Path]:
    """The root itself, or its subfolders when each of them holds its own good/."""
    folders = [f for f in subfolders(root) if f.name not in MASK_FOLDERS]
    if not (root / GOOD).is_dir():
        for folder in folders:  # each of them may be a category
            _refuse_other_names_of_good(folder, subfolders(folder), labelled=False)
    inner = [f for f in folders if (f / GOOD).is_dir()]
    if not inner or (root / GOOD).is_dir():
        return [root]
    loose = [f.name for f in folders if f not in inner]
    if loose or files_in(root).images:
        what = f"also {listed(loose)} without a good/ folder" if loose else "also images beside it"
        raise SpgError(
            f"{root} is ambiguous: {inner[0].name}/good makes {inner[0].name} a category, but "
            f"there is {what}. Give the folder of one category as the root, or move what does "
            f"not belong there."
        )
    return inner


def _classes(folder: Path) -> list[_Class]:
    """All images of one category, by class."""
    kinds = [f for f in subfolders(folder) if f.name not in MASK_FOLDERS]
    labelled = any((folder / name).is_dir() for name in (GOOD, *MASK_FOLDERS)) or any(
        _split_beside(files_below(kind).images)[1] for kind in kinds
    )
    _refuse_other_names_of_good(folder, kinds, labelled=labelled)
    if not labelled:
        return _loose(folder, files_below(folder).images)
    return _loose(folder, files_in(folder).images) + [_class(folder, kind) for kind in kinds]


def _refuse_other_names_of_good(folder: Path, kinds: Sequence[Path], *, labelled: bool) -> None:
    """`Good` means good whatever else is there; `ok` may be any name until others are classes."""
    for kind in kinds:
        plain = re.sub(r"[\s_-]+", "_", kind.name.lower()).strip("_")
        if kind.name != GOOD and (plain == GOOD or (labelled and plain in NOT_DEFECTS)):
            raise SpgError(
                f"The folder {kind.name!r} in {folder} would be taken for a defect or for images "
                f"without a label: normal images belong in a folder called `{GOOD}`, spelt like "
                f"this. Rename it."
            )


def _loose(folder: Path, files: Sequence[Path]) -> list[_Class]:
    """Images outside of class folders: a defect where a mask lies beside, else unlabelled."""
    pairs, _ = _pair(files, folder, [])
    return [
        _Class("defect", LABEL_ANOMALOUS, {i: m for i, m in pairs.items() if m}, []),
        _Class("", LABEL_UNKNOWN, {i: None for i, m in pairs.items() if not m}, []),
    ]


def _class(folder: Path, kind: Path) -> _Class:
    """One class folder: good, or a defect with masks in a mask folder or beside the images."""
    masks = [folder / name / kind.name for name in MASK_FOLDERS]
    pairs, extra = _pair(files_below(kind).images, kind, masks)
    if kind.name == GOOD:
        useless = [mask for mask in pairs.values() if mask]
        return _Class(GOOD, LABEL_NORMAL, dict.fromkeys(pairs), useless + extra)
    return _Class(kind.name, LABEL_ANOMALOUS, pairs, extra)


def _pair(
    files: Sequence[Path], base: Path, mask_roots: Sequence[Path]
) -> tuple[dict[Path, Path | None], list[Path]]:
    """Images below `base` with their masks, beside them or at the same place in a mask folder."""
    images, beside = _split_beside(files)
    masks = {m: m.parent.relative_to(base) for m in beside}
    for mask_root in mask_roots:
        masks |= {m: m.parent.relative_to(mask_root) for m in files_below(mask_root).images}
    pairs: dict[Path, Path | None] = dict.fromkeys(images)
    used: set[Path] = set()
    for parent in {image.parent for image in images}:
        here = parent.relative_to(base)
        matched, _ = match_masks(
            [i for i in images if i.parent == parent], [m for m, at in masks.items() if at == here]
        )
        pairs.update(matched)
        used.update(matched.values())
    return pairs, [m for m in masks if m not in used]


def _split_beside(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and masks named `<stem>_mask` after an image of the same folder."""
    stems = {(p.parent, p.stem) for p in files}
    masks = [
        p
        for p in files
        if p.stem.endswith("_mask") and (p.parent, p.stem.removesuffix("_mask")) in stems
    ]
    is_mask = set(masks)
    return [p for p in files if p not in is_mask], masks


def _entries(root: Path, category: str, kind: _Class) -> list[Entry]:
    return [
        Entry(
            path=relative(image, root),
            category=category,
            defect=kind.defect,
            label=kind.label,
            mask=relative(mask, root) if mask else "",
        )
        for image, mask in kind.pairs.items()
    ]


def _notes(root: Path, folder: Path, classes: Sequence[_Class]) -> list[str]:
    masks = [m for kind in classes for m in kind.pairs.values() if m]
    lossy = sum(m.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif") for m in masks)
    extra = [relative(m, root) for kind in classes for m in kind.extra_masks]
    defects = [m for k in classes if k.label == LABEL_ANOMALOUS for m in k.pairs.values()]
    unlabelled = sum(len(k.pairs) for k in classes if k.label == LABEL_UNKNOWN)
    noise = "whose compression noise counts as defect (every value above 0 does)"
    return [
        *noted(lossy, "mask", f"stored as JPEG, {noise}: use PNG"),
        *noted(extra, "mask", "without a use, ignored"),
        *noted(defects.count(None), "defect image", "without a mask, left out of pixel metrics"),
        *noted(unlabelled, "image", "without a label"),
        *noted(files_below(folder).others, "file", NO_IMAGE),
    ]
