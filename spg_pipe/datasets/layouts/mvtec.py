"""The `mvtec` layout: the folders of MVTec AD, for any category names, and those of its relatives.

A mask belongs to the image of its name, never to the image of its position: a single file that
is missing would shift every later pair.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from spg_pipe.datasets.layouts.listing import Entry, Layout, Scan, Select, entry_of, good_notes
from spg_pipe.datasets.manifest import MaskState
from spg_pipe.datasets.masks import (
    mask_notes,
    normal_folders,
    some_not_empty,
    sort_masks,
    used_masks,
)
from spg_pipe.datasets.names import (
    GOOD,
    Place,
    is_mask_folder,
    is_normal,
    mask_places,
    may_hold_masks,
    place_of,
    plain,
    says_nothing,
)
from spg_pipe.datasets.pairs import pair
from spg_pipe.datasets.walk import subfolders, walk
from spg_pipe.errors import SpgError, counted, listed, noted

_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "test_public"), "test"
)
"""Folder, as `plain` writes it → split. MVTec AD 2's public test images are labelled."""
_OFFICIAL = ("by the folder ground_truth/", "by the folder ground_truth/ and the suffix _mask")
"""How MVTec AD's own masks are told: no news."""


def scan_mvtec(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks of every wanted category; a `Layout.scan`.

    SpgError if no category is there, some masks of a category are missing, or a name fits two
    files.
    """
    below = {folder: split_folders(folder) for folder in subfolders(root)}
    with_splits = [folder for folder in below if below[folder]]
    # A product may be called mask.
    folders = [f for f in with_splits if not is_mask_folder(f.name)] or with_splits
    if not folders:
        raise SpgError(_no_category(root))
    splits = ("train", "test") if split == "all" else (split,)
    chosen = {f.name: _scan_category(root, f, below[f], splits) for f in folders if select(f.name)}
    ignored = [folder for folder in below if not below[folder]]
    beside = [folder for folder in with_splits if folder not in folders]
    there = walk(root, deep=False)
    notes = [
        *(note for category in chosen.values() for note in category.notes),
        *noted(ignored, "folder", "without train/ and test/, ignored", root),
        *noted(beside, "folder", "of masks in no category, ignored (move it into one)", root),
        *noted(there.images, "image", "in no category, ignored", root),
        *there.notes(root, documents=root),
    ]
    if empty := [name for name, category in chosen.items() if not category.entries]:
        notes.append(f"no {' or '.join(splits)} images in: {listed(empty)}")
    entries = [entry for category in chosen.values() for entry in category.entries]
    asked = [part for name in chosen for part in below[root / name].items() if not entries]
    if deeper := [part for part, of in asked if of in splits and walk(part).images]:
        raise SpgError(
            f"No image lies directly in a class of {deeper[0]}, as in good/. Use the layout folder "
            f"with the root {deeper[0]}: it takes images at any depth."
        )
    return Scan(entries, [folder.name for folder in folders], notes)


MVTEC = Layout(
    "mvtec",
    "MVTec AD's official folders, for any category names; a mask has its image's name.",
    """\
ROOT/<category>/train/good/000.png
ROOT/<category>/test/good/000.png
ROOT/<category>/test/<defect>/000.png
ROOT/<category>/ground_truth/<defect>/000_mask.png
ROOT/<category>/ground_truth/<defect>/000/*.png    (or parts of one mask)""",
    scan_mvtec,
)


def split_folders(category: Path) -> dict[Path, str]:
    """The folders of a category that hold a split's images in classes, each with the split."""
    named = {folder: _SPLITS.get(plain(folder.name)) for folder in subfolders(category)}
    splits = {folder: split for folder, split in named.items() if split}
    inner = [folder.name for split in splits for folder in subfolders(split)]
    return splits if any(not (may_hold_masks(n) or says_nothing(n)) for n in inner) else {}


def _scan_category(
    root: Path, category: Path, folders: Mapping[Path, str], splits: Sequence[str]
) -> Scan:
    """The images of one category, with the masks of their names; `folders` are its own splits'."""
    walked = walk(category)
    sorting = sort_masks(category, walked.images)
    parts = {folder.name: split for folder, split in folders.items()}
    images: dict[str, dict[Path, Place]] = {split: {} for split in splits}
    unread = defaultdict(list)
    for image in sorting.images:
        part = (*image.relative_to(category).parts[:-1], category.name)[0]
        place = place_of(category, image)
        if parts.get(part) in splits and len(place) == 1:
            images[parts[part]][image] = place
        elif part not in parts or parts[part] in splits:
            unread[part].append(image)
    of_images = {image: at for places in images.values() for image, at in places.items()}
    masks = mask_places(category, sorting.masks, of_images)
    kinds = sorted({kind.name for folder in folders for kind in subfolders(folder)})
    normal = normal_folders(kinds, masks)
    entries, pairs = [], dict[Path, Path]()
    for split, places in images.items():
        pairs |= pair(category, {i: at for i, at in places.items() if at[0] not in normal}, masks)
        entries += [
            entry_of(root, category.name, image, kind, pairs.get(image), split == "train")
            for image, (name,) in places.items()
            for kind in [GOOD if name in normal else name]
        ]
    used = used_masks(masks, pairs.values())
    news = [mask for mask in used if sorting.masks[mask] not in _OFFICIAL]
    of_good = [m for m in masks if m not in used and {*masks[m]} & normal]
    unused = [m for m in masks if m not in used and m not in of_good]
    notes = [
        *good_notes({place[0] for place in of_images.values()} & normal),
        *mask_notes(root, news, sorting.masks),
        *_without_masks(root, category, entries, masks, kinds),
        *noted(unused if "test" in splits else (), "mask", "without an image, ignored", root),
        *noted(some_not_empty(of_good), "mask", "of normal images but not empty, ignored", root),
    ]
    for part, paths in unread.items():
        where = f"in {part}, not directly in a class of train/ or test/, ignored"
        notes += noted(paths, "image", where, root)
    notes += sorting.doubts + walked.notes(root, documents=category)
    return Scan(entries, [category.name], [f"{category.name}: {note}" for note in notes])


def _without_masks(
    root: Path, category: Path, entries: Sequence[Entry], masks: Collection[Path], kinds: list[str]
) -> list[str]:
    """A note if a category has no masks at all; SpgError if it lacks some."""
    missing = [entry for entry in entries if entry.mask_state == MaskState.MISSING]
    if missing and not masks and not any(map(is_normal, kinds)):
        raise SpgError(
            f"Nothing says which images of {category} are normal: it has no masks, and none of the "
            f"folders {listed(kinds)} is called {GOOD}, OK, normal or the like. Rename "
            f"the folder of normal images `{GOOD}`."
        )
    if not masks:
        what = "without a mask, as all in this category: left out of pixel metrics"
        return noted([entry.path for entry in missing], "defect image", what)
    if not missing:
        return []
    expected = [
        f"{entry.path} (expected {category.name}/ground_truth/{entry.defect}/"
        f"{PurePosixPath(entry.path).stem}_mask.png)"
        for entry in missing
    ]
    test = category / PurePosixPath(missing[0].path).parts[1]
    raise SpgError(
        f"{counted(len(missing), 'defect image')} in {root} without a mask: {listed(expected)}, "
        f"but {noted([*masks], 'mask', 'in the category', root)[0]}. Masks are matched by name. "
        f"Put the missing ones there. Or, where none exist, move the others to "
        f"{test / 'ground_truth'} and use the layout folder with the root {test}: there a defect "
        f"image may lack its mask."
    )


def _no_category(root: Path) -> str:
    itself, layout, start = "", "folder", root
    if split_folders(root):
        itself, layout, start = f"{root} is itself one category. ", "mvtec", root.resolve().parent
    return (
        f"No category of the mvtec layout in {root}: expected <category>/test/good, "
        f"<category>/test/<defect> and <category>/ground_truth/<defect>. It holds the folders "
        f"{listed([folder.name for folder in subfolders(root)]) or '(none)'}. {itself}Use the "
        f"layout {layout} with the root {start}."
    )
