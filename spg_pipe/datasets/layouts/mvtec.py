"""The `mvtec` layout: the folders of MVTec AD, for any category names, and those of its relatives.

A mask belongs to the image of its name, never to the image of its position: a single file that
is missing would shift every later pair.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, MaskState
from spg_pipe.datasets.masks import is_mask_folder, may_hold_masks, pair, place_of, plain, says_nothing, sort_masks, told
from spg_pipe.datasets.walk import is_image, relative, subfolders, walk
from spg_pipe.errors import SpgError, counted, listed

_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "testing", "test_public"), "test"
)
"""Folder, as `plain` writes it → split. MVTec AD 2's public test images are labelled."""
_OFFICIAL = ("the folder ground_truth/", "the folder ground_truth/ and the suffix _mask")
"""How MVTec AD's own masks are told: no news."""


def scan_mvtec(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks of every wanted category; a `Layout.scan`.

    SpgError if no category is there, some masks of a category are missing, or a name fits two
    files.
    """
    folders = [f for f in subfolders(root) if split_folders(f)]
    masks = [folder for folder in folders if is_mask_folder(folder.name)]
    if len(masks) < len(folders):  # else it is what a product is called
        folders = [folder for folder in folders if folder not in masks]
    if not folders:
        raise SpgError(_no_category(root))
    splits = ("train", "test") if split == "all" else (split,)
    chosen = {f.name: _scan_category(root, f, splits) for f in folders if select(f.name)}
    empty = [name for name, category in chosen.items() if not category.entries]
    ignored = [folder.name for folder in subfolders(root) if folder not in (*folders, *masks)]
    beside = [folder.name for folder in masks if folder not in folders]
    loose = [path.name for path in sorted(root.iterdir()) if is_image(path) and path.is_file()]
    notes = [note for category in chosen.values() for note in category.notes]
    notes += noted(ignored, "folder", "without train/ and test/, ignored")
    notes += noted(loose, "image", "in no category, ignored")
    notes += noted(beside, "folder", "of masks in no category, ignored (move it into its category)")
    if empty:
        notes.append(f"no {' or '.join(splits)} images in: {listed(empty)}")
    entries = [entry for category in chosen.values() for entry in category.entries]
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


def _scan_category(root: Path, category: Path, splits: Sequence[str]) -> Scan:
    """The images of one category, with the masks of their names."""
    walked = walk(category)
    sorting = sort_masks(category, walked.images)
    parts = {folder.name: split for folder, split in split_folders(category).items()}
    images: dict[str, dict[Path, tuple[str, ...]]] = {split: {} for split in splits}
    stray, unread = [], defaultdict(list)
    for image in sorting.images:
        part, place = image.relative_to(category).parts[0], place_of(category, image)
        if parts.get(part) in splits and len(place) == 1:
            images[parts[part]][image] = place
        elif parts.get(part) in splits or image.parent == category:
            stray.append(relative(image, root))
        elif part not in parts:
            unread[part].append(relative(image, root))
    masks = {mask: place_of(category, mask, mask=True) for mask in sorting.masks}
    pairs = {
        image: mask
        for part in images.values()
        for image, mask in pair(
            {i: place for i, place in part.items() if not is_normal(place[0])}, masks
        ).items()
    }
    entries = [
        _entry(root, category.name, image, place[0], pairs.get(image), split == "train")
        for split, part in images.items()
        for image, place in part.items()
    ]
    used = {mask for mask in masks if mask in pairs.values() or mask.parent in pairs.values()}
    unused = [m for m in masks if m not in used and not any(map(is_normal, masks[m]))]
    notes = [
        *normal_notes(place[0] for part in images.values() for place in part.values()),
        *told(root, [m for m in used if sorting.masks[m] not in _OFFICIAL], sorting.masks),
        *_without_masks(root, category, entries, masks),
        *noted(
            [relative(m, root) for m in unused if "test" in splits],
            "mask",
            "without an image, ignored",
        ),
        *noted(stray, "image", "not directly in a defect folder, ignored"),
        *[
            note
            for part, paths in unread.items()
            for note in noted(paths, "image", f"in {part}/, neither train/ nor test/, ignored")
        ],
        *sorting.doubts,
        *walked.notes(root, documents=category),
    ]
    return Scan(entries, [category.name], [f"{category.name}: {note}" for note in notes])


def _entry(
    root: Path, category: str, image: Path, kind: str, mask: Path | None, train: bool
) -> Entry:
    """The entry of an image in the folder `kind` of a split."""
    normal = is_normal(kind)
    return Entry(
        path=relative(image, root),
        category=category,
        defect=GOOD if normal else kind,
        label=LABEL_NORMAL if normal else LABEL_ANOMALOUS,
        mask=relative(mask, root) if mask else "",
        train=train,
    )


def _without_masks(
    root: Path, category: Path, entries: Sequence[Entry], masks: Mapping[Path, tuple[str, ...]]
) -> list[str]:
    """A note if a category has no masks at all; SpgError if it lacks some."""
    missing = [entry for entry in entries if entry.mask_state == MaskState.MISSING]
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
        f"though the category has {counted(len(masks), 'mask')}: "
        f"{listed([relative(mask, root) for mask in masks], 2)}. Masks are matched by name. Put "
        f"the missing ones there. Or, where none exist, use the layout folder with the root "
        f"{test}, and move the masks into it, as {test / 'ground_truth'}: there a defect image "
        f"may lack its mask."
    )


def _no_category(root: Path) -> str:
    names = [folder.name for folder in subfolders(root)]
    below = [folder for folder in subfolders(root) if any(map(split_folders, subfolders(folder)))]
    advice = f"If these are images of your own, use the layout folder with the root {root}"
    if split_folders(root):
        above = root.resolve().parent
        advice = f"{root} is itself one category: use the layout mvtec with the root {above}"
    elif below:
        advice = f"There are categories in it: use the layout mvtec with the root {below[0]}"
    return (
        f"No category of the mvtec layout in {root}: expected <category>/test/good, "
        f"<category>/test/<defect> and <category>/ground_truth/<defect>. It holds the folders "
        f"{listed(names) or '(none)'}. {advice}."
    )
