"""The `folder` layout: a person's own images, with as much labelling as there is.

Rules
-----
- Subfolders are classes when something says so: a folder of normal images (`good`, `OK`, …), a
  folder of masks, or a mask beside an image. Otherwise the images in them have no labels.
- A class folder is searched at any depth; folders such as `images/` and `train/` are no classes.
  An image in none has no label, unless it has a mask (then its defect is called `defect`).
- A defect image without a mask is MISSING: it counts for the image score only.
- Where no folder says `good`, only masks label: an image whose mask is empty is normal, one
  without a mask has no label.
- The category is the folder's name. When every subfolder holds its own `good/`, each of them is a
  category instead.
- EXIF orientation is honoured unless the protocol ignores it, for image and mask alike.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from spg_pipe.datasets.layouts.listing import (
    GOOD,
    Entry,
    Layout,
    Scan,
    Select,
    is_normal,
    normal_notes,
    noted,
)
from spg_pipe.datasets.layouts.mvtec import split_folders
from spg_pipe.datasets.layouts.visa import SPLIT_FILE
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.masks import (
    Place,
    Sorting,
    empty_masks,
    is_mask_folder,
    may_hold_masks,
    pair,
    place_of,
    says_nothing,
    sort_masks,
    told,
)
from spg_pipe.datasets.walk import SYNTHETIC_RECORD, is_image, relative, subfolders, walk
from spg_pipe.errors import SpgError, counted, listed

_DEPTH = 3
"""Of folders such as `Data/Images/` above the classes, at most."""


def scan_folder(root: Path, _split: str, select: Select) -> Scan:
    """Find a person's images and what is known about them (rules: this module's text).

    SpgError if the folder holds none, looks like another layout, or its labels are ambiguous.
    """
    _refuse_other_layouts(root)
    folders = {f.resolve().name: f for f in _category_folders(root)}
    chosen = {name: folder for name, folder in folders.items() if select(name)}
    walked = walk(root, skip=[f for f in folders.values() if f not in chosen.values()])
    sorting = sort_masks(root, walked.images)
    scans = [_scan_category(root, name, folder, sorting) for name, folder in chosen.items()]
    entries = [entry for scan in scans for entry in scan.entries]
    used = {entry.mask for entry in entries}
    masks = [relative(mask, root) for mask in sorting.masks]
    unused = [m for m in masks if not {m, PurePosixPath(m).parent.as_posix()} & used]
    outside = {*sorting.images} - {root / entry.path for entry in entries}
    notes = [
        *(note for scan in scans for note in scan.notes),
        *noted([relative(i, root) for i in sorted(outside)], "image", "in no category, ignored"),
        *noted(unused, "mask", "without a use, ignored"),
        *sorting.doubts,
        *walked.notes(root),
    ]
    if chosen and not entries:
        raise SpgError(
            f"No images in {root}: expected image files, in it or in subfolders such as good/ "
            f"and one folder for each defect. {'; '.join(notes) or 'It is empty'}."
        )
    return Scan(entries, sorted(folders), notes)


FOLDER = Layout(
    "folder",
    "Your own images: good/ and one folder for each defect, masks optional; or just images "
    "without labels, at any depth.",
    """\
ROOT/*.jpg                                   (no labels)
ROOT/good/*.jpg                              (or OK/, normal/, …)
ROOT/<defect>/*.jpg
ROOT/ground_truth/<defect>/<stem>_mask.png   (optional; or masks/<defect>/, GT/, …)
ROOT/<defect>/<stem>_mask.png                (or beside the image)""",
    scan_folder,
    own_images=True,
    splits=False,
)


def _refuse_other_layouts(root: Path) -> None:
    below = subfolders(root)
    for folder in (root, *below, *(inner for f in below for inner in subfolders(f))):
        splits = split_folders(folder)
        official = [s for s in splits if any(is_normal(f.name) for f in subfolders(s))]
        if not official and "test" in splits.values() and (folder / "ground_truth").is_dir():
            official = [s for s in splits if splits[s] == "test"]
        if official:
            start = folder.resolve().parent if folder == root else folder.parent
            raise SpgError(
                f"{folder} holds {listed([s.name for s in splits])}: this is the mvtec layout, not "
                f"a plain folder. Use the layout mvtec with the root {start} (its category: "
                f"{folder.resolve().name}), or name a folder of one split, as {official[0]}."
            )
    for sign, layout in ((SYNTHETIC_RECORD, "synthetic"), (SPLIT_FILE, "visa")):
        if (root / sign).exists():
            raise SpgError(
                f"{root} holds {sign}: this is the {layout} layout. Use the layout {layout}, or "
                f"name a folder of your own images."
            )


def _category_folders(root: Path) -> list[Path]:
    """The root itself, or its subfolders when each of them holds its own good/."""
    folders = [f for f in subfolders(root) if not is_mask_folder(f.name)]
    inner = [f for f in folders if _holds_normal(f, _DEPTH)]
    # `images/good` and `train/good` are of the root; `bolt/good` and `data/good` of two products.
    if any(is_normal(f.name) for f in folders) or all(says_nothing(f.name) for f in inner):
        return [root]
    kinds = {kind.name for f in inner for kind in subfolders(f)}
    inner = [f for f in folders if f in inner or _holds_only(f, kinds)]  # a day without an OK part
    rest = [f for f in folders if f not in inner and not may_hold_masks(f.name)]
    loose = [f.name for f in rest if walk(f).images]
    if loose or any(is_image(path) for path in root.iterdir()):
        what = f"also {listed(loose)} without a good/ folder" if loose else "also images beside it"
        raise SpgError(
            f"{root} is ambiguous: normal images in {inner[0].name} make it a category, but there "
            f"is {what}. Give the folder of one category as the root, or move what does "
            f"not belong there."
        )
    return inner


def _holds_normal(folder: Path, depth: int) -> bool:
    """Whether a folder of normal images is in it, or in a folder such as `images/` in it."""
    return depth > 0 and any(
        is_normal(f.name) or (says_nothing(f.name) and _holds_normal(f, depth - 1))
        for f in subfolders(folder)
    )


def _holds_only(folder: Path, kinds: set[str]) -> bool:
    """Whether all that is in a folder is in classes, which other categories have as well."""
    own = {kind.name for kind in subfolders(folder)}
    return bool(own) and own <= kinds and not any(map(is_image, folder.iterdir()))


def _scan_category(root: Path, category: str, folder: Path, sorting: Sorting) -> Scan:
    """All images of one category, with their labels and masks."""
    images = {i: place_of(folder, i) for i in sorting.images if i.is_relative_to(folder)}
    places = {mask: _mask_place(root, folder, mask) for mask in sorting.masks}
    masks = {mask: place for mask, place in places.items() if place is not None}
    normal = {image for image, place in images.items() if place and is_normal(place[0])}
    pairs = pair({i: place for i, place in images.items() if i not in normal}, masks)
    by_folders = bool(normal) or folder != root  # categories are such by their normal images
    if not by_folders:
        empty = empty_masks([*pairs.values()])
        normal = {image for image, mask in pairs.items() if mask in empty}
    entries = []
    for image, place in images.items():
        defect, label = "", LABEL_UNKNOWN
        if image in normal:
            defect, label = GOOD, LABEL_NORMAL
        elif image in pairs or (place and by_folders):
            defect, label = place[0] if place else "defect", LABEL_ANOMALOUS
        mask = pairs.get(image) if label == LABEL_ANOMALOUS else None
        where = relative(mask, root) if mask else ""
        entries.append(Entry(relative(image, root), category, defect, label, where))
    notes = [
        *normal_notes(place[0] for place in images.values() if place),
        *told(root, [m for m in masks if {m, m.parent} & {*pairs.values()}], sorting.masks),
        *_notes(root, entries, by_folders),
    ]
    return Scan(entries, [category], [f"{category}: {note}" for note in notes])


def _mask_place(root: Path, folder: Path, mask: Path) -> Place | None:
    """Where in a category a mask's image is; None if that is another category."""
    if mask.is_relative_to(folder):
        return place_of(folder, mask, mask=True)
    place = place_of(root, mask, mask=True)  # masks/<category>/<defect>/
    return place[1:] if place[:1] == (folder.name,) else None


def _notes(root: Path, entries: Sequence[Entry], by_folders: bool) -> list[str]:
    """What a category lacks. `by_folders`: some folder says which images are normal."""
    without = [e.path for e in entries if e.label == LABEL_ANOMALOUS and not e.mask]
    notes = noted(without, "defect image", "without a mask, left out of pixel metrics")
    none = f"no folder is called {GOOD}, OK, normal or the like"
    above = [folder for entry in entries for folder in PurePosixPath(entry.path).parents]
    deep = [folder for folder in above if is_normal(folder.name)]
    if deep and not by_folders:
        start = root / deep[0].parent.parent
        none = f"{deep[0]}/ lies too deep, use the layout folder with the root {start}"
    normal = [entry.path for entry in entries if entry.label == LABEL_NORMAL]
    if normal and not by_folders:
        notes += noted(normal, "image", f"taken for normal, as their masks are empty and {none}")
    if unlabelled := sum(entry.label == LABEL_UNKNOWN for entry in entries):
        why = (
            ""
            if by_folders
            else f": {none}"
            + (", so that masks alone label" if any(entry.mask for entry in entries) else "")
        )
        notes.append(f"{counted(unlabelled, 'image')} without a label{why}")
    return notes
