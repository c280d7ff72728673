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

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from spg_pipe.datasets.layouts.listing import NO_IMAGE, Entry, Layout, Scan, Select, noted
from spg_pipe.datasets.layouts.mvtec import GOOD, match_masks
from spg_pipe.datasets.layouts.synthetic import RECORD
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.walk import files_below, is_image, relative, subfolders
from spg_pipe.errors import SpgError, listed

MASK_FOLDERS = ("ground_truth", "masks")
NOT_DEFECTS = frozenset(
    {"goods", "normal", "nominal", "ok", "okay", "pass", "passed", "no_defect", "defect_free"}
)
"""Names that say `good` in other words; case, hyphens and surrounding space do not matter."""

_Places = defaultdict[tuple[str, ...], list[Path]]
"""Names of the folders down to a file → the files there."""


def scan_folder(root: Path, _split: str, select: Select) -> Scan:
    """Find a person's images and what is known about them (rules: this module's text).

    SpgError if the folder holds none, looks like another layout, or its labels are ambiguous.
    """
    _refuse_other_layouts(root)
    folders = {f.resolve().name: f for f in _category_folders(root)}
    chosen = [_scan_category(root, name, f) for name, f in folders.items() if select(name)]
    entries = [entry for category in chosen for entry in category.entries]
    if chosen and not entries:
        raise SpgError(
            f"No images in {root}: expected image files, in it or in subfolders such as good/ "
            f"and one folder for each defect."
        )
    return Scan(entries, sorted(folders), [note for category in chosen for note in category.notes])


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
    for sign, layout in ((RECORD, "synthetic"), ("split_csv", "visa")):
        if (root / sign).exists():
            raise SpgError(
                f"{root} holds {sign}: this is the {layout} layout. Use the layout {layout}, or "
                f"name a folder of your own images."
            )


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
    if loose or any(is_image(path) for path in root.iterdir()):
        what = f"also {listed(loose)} without a good/ folder" if loose else "also images beside it"
        raise SpgError(
            f"{root} is ambiguous: {inner[0].name}/good makes {inner[0].name} a category, but "
            f"there is {what}. Give the folder of one category as the root, or move what does "
            f"not belong there."
        )
    return inner


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


def _by_place(folder: Path, files: Sequence[Path]) -> tuple[_Places, _Places]:
    """Images and masks by subfolder; a mask is at the same place in a mask folder, or beside."""
    stems = {(path.parent, path.stem) for path in files}
    images, masks = _Places(list), _Places(list)
    for path in files:
        place = path.relative_to(folder).parts[:-1]
        if place and place[0] in MASK_FOLDERS:
            masks[place[1:] or place].append(path)
        elif (
            path.stem.endswith("_mask") and (path.parent, path.stem.removesuffix("_mask")) in stems
        ):
            masks[place].append(path)
        else:
            images[place].append(path)
    return images, masks


def _scan_category(root: Path, category: str, folder: Path) -> Scan:
    """All images of one category, with their labels and masks."""
    files, others = files_below(folder)
    images, masks = _by_place(folder, files)
    kinds = [f for f in subfolders(folder) if f.name not in MASK_FOLDERS]
    named = any((folder / name).is_dir() for name in (GOOD, *MASK_FOLDERS))
    labelled = named or bool(masks.keys() - {()})
    _refuse_other_names_of_good(folder, kinds, labelled=labelled)
    entries: list[Entry] = []
    unused = {mask for paths in masks.values() for mask in paths}
    for place, paths in images.items():
        pairs = match_masks(paths, masks[place])
        for image in paths:
            mask = pairs.get(image)
            defect, label = "", LABEL_UNKNOWN
            if place and labelled:
                defect = place[0]
                label = LABEL_NORMAL if defect == GOOD else LABEL_ANOMALOUS
            elif mask:
                defect, label = "defect", LABEL_ANOMALOUS
            if label == LABEL_NORMAL:
                mask = None
            unused.discard(mask)
            where = relative(mask, root) if mask else ""
            entries.append(Entry(relative(image, root), category, defect, label, where))
    extra = sorted(relative(mask, root) for mask in unused)
    without = sum(e.label == LABEL_ANOMALOUS and not e.mask for e in entries)
    unlabelled = sum(entry.label == LABEL_UNKNOWN for entry in entries)
    notes = [
        *noted(extra, "mask", "without a use, ignored"),
        *noted(without, "defect image", "without a mask, left out of pixel metrics"),
        *noted(unlabelled, "image", "without a label"),
        *noted(len(others), "file", NO_IMAGE),
    ]
    return Scan(entries, [category], [f"{category}: {note}" for note in notes])
