"""The `folder` layout: a person's own images, with as much labelling as there is.

Rules
-----
- Subfolders are classes when one is of normal images (`good`, `OK`, …). Otherwise they only name
  the defects of images with masks.
- A class folder is searched at any depth; folders such as `images/` and `train/` are no classes.
  An image in none has no label, unless it has a mask (then its defect is called `defect`).
- A defect image without a mask is MISSING: it counts for the image score only.
- Where no folder says `good`, only masks label: an image whose mask is empty is normal, one
  without a mask has no label.
- The category is the folder's name. When every subfolder holds its own `good/`, each of them is a
  category instead.
- EXIF orientation is honoured unless the protocol ignores it, for image and mask alike.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select, entry_of, good_notes
from spg_pipe.datasets.layouts.mvtec import split_folders
from spg_pipe.datasets.layouts.visa import SPLIT_FILE
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.masks import (
    is_empty,
    mask_notes,
    normal_folders,
    sort_masks,
    used_masks,
)
from spg_pipe.datasets.names import GOOD, Place, is_normal, mask_places, place_of
from spg_pipe.datasets.pairs import pair
from spg_pipe.datasets.walk import SYNTHETIC_RECORD, subfolders, walk
from spg_pipe.errors import SpgError, counted, listed, noted


def scan_folder(root: Path, _split: str, select: Select) -> Scan:
    """Find a person's images and what is known about them (rules: this module's text).

    SpgError if the folder holds none, looks like another layout, or its labels are ambiguous.
    """
    _refuse_other_layouts(root)
    walked = walk(root)
    sorting = sort_masks(root, walked.images)
    images = {image: place_of(root, image) for image in sorting.images}
    masks = mask_places(root, sorting.masks, images)
    inner = _categories(root, images)
    categories = _divided(root, inner, images, masks)
    scans = [
        _scan_category(root, name, *files, sorting.masks, bool(inner))
        for name, files in categories.items()
        if select(name)
    ]
    entries = [entry for scan, _ in scans for entry in scan.entries]
    unasked = {m for name, files in categories.items() if not select(name) for m in files[1]}
    used = {mask for _, masks_of_category in scans for mask in masks_of_category}
    notes = [
        *(note for scan, _ in scans for note in scan.notes),
        *noted(sorted(masks.keys() - used - unasked), "mask", "without a use, ignored", root),
        *sorting.doubts,
        *walked.notes(root),
    ]
    if scans and not entries:
        raise SpgError(
            f"No images in {root}: expected image files, in it or in subfolders such as good/ "
            f"and one folder for each defect. {'; '.join(notes) or 'It is empty'}."
        )
    return Scan(entries, [*categories], notes)


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
                f"{folder.resolve().name}), or name a folder of one split: "
                f"{' or '.join(map(str, official))}."
            )
    for sign, layout in ((SYNTHETIC_RECORD, "synthetic"), (SPLIT_FILE, "visa")):
        if (root / sign).exists():
            raise SpgError(
                f"{root} holds {sign}: this is the {layout} layout. Use the layout {layout}, or "
                f"name a folder of your own images."
            )


def _categories(root: Path, images: Mapping[Path, Place]) -> list[str]:
    """The folders that hold their own good/, sorted; none if the root is the one category."""
    below: dict[str, set[str]] = defaultdict(set)
    for place in filter(None, images.values()):
        below[place[0]].add("".join(place[1:2]))
    inner = [
        name
        for name, kinds in sorted(below.items())
        if any(map(is_normal, kinds))  # normal/{good,scratch} is a category, normal/ok/ is none
        and (not is_normal(name) or any(kind and not is_normal(kind) for kind in kinds))
    ]
    if not inner:
        return []
    known = {kind for name in inner for kind in below[name]} - {""}
    names = {*inner, *(n for n in below if below[n] <= known)}  # also a day without OK parts
    loose = [image for image, place in images.items() if names.isdisjoint(place[:1])]
    if loose:
        raise SpgError(
            f"{root} is ambiguous: a folder {GOOD}/ in {inner[0]} makes {inner[0]} a category, but "
            f"there are {'; '.join(noted(loose, 'image', 'in none', root))}. Give the folder of "
            f"one category as the root, or move what does not belong there."
        )
    return sorted(names)


def _divided(
    root: Path, names: Sequence[str], images: Mapping[Path, Place], masks: Mapping[Path, Place]
) -> dict[str, tuple[dict[Path, Place], dict[Path, Place]]]:
    """Category → its images and masks, with their places in it; without names the root is one.

    Its masks are in its folder, even one called `label`, and in `masks/<category>/`.
    """
    divided = {name: (dict[Path, Place](), dict[Path, Place]()) for name in names}
    for kind, files in enumerate((images, masks)):
        for file, place in files.items():
            if place and place[0] in divided:
                divided[place[0]][kind][file] = place[1:]
    inside = defaultdict(list)
    for mask in masks:
        inside[mask.relative_to(root).parts[0]].append(mask)
    for name, (images_of_category, masks_of_category) in divided.items():
        masks_of_category.update(mask_places(root / name, inside[name], images_of_category))
    return divided or {root.resolve().name: (dict(images), dict(masks))}


def _scan_category(
    root: Path,
    category: str,
    images: Mapping[Path, Place],
    masks: Mapping[Path, Place],
    rules: Mapping[Path, str],
    by_folders: bool,
) -> tuple[Scan, set[Path]]:
    """All images of one category, with their labels and masks; and the masks that have images.

    `by_folders`: folders say which images are normal, even if this category has none.
    """
    folders = {place[0] for place in images.values() if place}
    words = normal_folders(folders, masks)
    normal = {image for image, place in images.items() if words & {*place[:1]}}
    pairs = pair(root, {i: place for i, place in images.items() if i not in normal}, masks)
    by_folders = by_folders or bool(normal)
    if not by_folders:
        normal = {image for image, mask in pairs.items() if is_empty(mask)}
    entries = []
    for image, place in images.items():
        anomalous = image in pairs or (place and by_folders)
        kind = (place[0] if place else "defect") if anomalous else ""
        kind = GOOD if image in normal else kind
        entries.append(entry_of(root, category, image, kind, pairs.get(image)))
    used = used_masks(masks, pairs.values())
    notes = [
        *good_notes(words),
        *mask_notes(root, used, rules),
        *_notes(root, entries, None if by_folders else sorted(folders)),
    ]
    return Scan(entries, [category], [f"{category}: {note}" for note in notes]), used


def _notes(root: Path, entries: Sequence[Entry], unclear: Sequence[str] | None) -> list[str]:
    """What a category lacks. `unclear`: its folders, if none says which images are normal."""
    without = [e.path for e in entries if e.label == LABEL_ANOMALOUS and not e.mask]
    notes = noted(without, "defect image", "without a mask, left out of pixel metrics")
    there = f" (there are: {listed(unclear)})" if unclear else ""
    none = f"no folder is called {GOOD}, OK, normal or the like{there}"
    above = [folder for entry in entries for folder in PurePosixPath(entry.path).parents]
    if deep := [folder for folder in above if is_normal(folder.name)]:
        start = root / deep[0].parent.parent
        none = f"{deep[0]}/ lies too deep, use the layout folder with the root {start}"
    normal = [entry.path for entry in entries if entry.label == LABEL_NORMAL]
    if normal and unclear is not None:
        notes += noted(normal, "image", f"taken for normal, as their masks are empty and {none}")
    if unlabelled := sum(entry.label == LABEL_UNKNOWN for entry in entries):
        alone = ", so that masks alone label" if any(entry.mask for entry in entries) else ""
        why = "" if unclear is None else f": {none}{alone}"
        notes.append(f"{counted(unlabelled, 'image')} without a label{why}")
    return notes
