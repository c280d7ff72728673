"""The `mvtec` layout: the official folders of MVTec AD, for any category names.

A mask belongs to the image of its name, never to the image of its position: a single file that
is missing would shift every later pair.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from spg_pipe.datasets.layouts.listing import NO_IMAGE, Entry, Layout, Scan, Select, noted
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, MaskState
from spg_pipe.datasets.walk import files_below, relative, subfolders
from spg_pipe.errors import SpgError, counted, listed

GOOD = "good"


def scan_mvtec(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks of every wanted category; a `Layout.scan`.

    SpgError if no category is there, a defect image has no mask, or a name fits two files.
    """
    folders = [f for f in subfolders(root) if (f / "test").is_dir() or (f / "train").is_dir()]
    if not folders:
        raise SpgError(_no_category(root))
    splits = ("train", "test") if split == "all" else (split,)
    chosen = {f.name: _scan_category(root, f, splits) for f in folders if select(f.name)}
    entries = [entry for category in chosen.values() for entry in category.entries]
    missing = [
        f"{entry.path} (expected {entry.category}/ground_truth/{entry.defect}/{stem}_mask.png)"
        for entry in entries
        if entry.mask_state == MaskState.MISSING
        for stem in [PurePosixPath(entry.path).stem]
    ]
    if missing:
        raise SpgError(
            f"{counted(len(missing), 'defect image')} in {root} without a mask: "
            f"{listed(missing)}. Masks are matched by name. Put the masks there; or, where none "
            f"exist, use the `folder` layout, in which a defect image may lack its mask."
        )
    empty = [name for name, category in chosen.items() if not category.entries]
    ignored = [folder.name for folder in subfolders(root) if folder not in folders]
    notes = [note for category in chosen.values() for note in category.notes]
    notes += noted(ignored, "folder", "without train/ and test/, ignored")
    if empty:
        notes.append(f"no {' or '.join(splits)} images in: {listed(empty)}")
    return Scan(entries, [folder.name for folder in folders], notes)


MVTEC = Layout(
    "mvtec",
    "MVTec AD's official folders, for any category names; every defect image has a mask of its "
    "name.",
    """\
ROOT/<category>/train/good/000.png
ROOT/<category>/test/good/000.png
ROOT/<category>/test/<defect>/000.png
ROOT/<category>/ground_truth/<defect>/000_mask.png""",
    scan_mvtec,
)


def match_masks(images: Sequence[Path], masks: Sequence[Path]) -> dict[Path, Path]:
    """Pair images and masks of one defect by name: `<stem>_mask.*`, or the same stem.

    Image → mask, for the images that have one. SpgError if two images share a stem, or two masks
    fit one image.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        by_stem[mask.stem].append(mask)
    pairs: dict[Path, Path] = {}
    owners: dict[str, Path] = {}
    for image in images:
        fitting = by_stem.get(f"{image.stem}_mask", []) + by_stem.get(image.stem, [])
        owner = owners.setdefault(image.stem, image)
        if fitting and owner != image:
            raise SpgError(
                f"The images {owner} and {image} share one name, so it is unclear "
                f"which of them a mask belongs to. Rename one of them (and its mask)."
            )
        if len(fitting) > 1:
            raise SpgError(
                f"Several masks fit the image {image}: {listed([str(m) for m in fitting])}. "
                f"Keep one of them."
            )
        if fitting:
            pairs[image] = fitting[0]
    return pairs


def _scan_category(root: Path, category: Path, splits: Sequence[str]) -> Scan:
    """The images of one category, with the masks of their names."""
    image_files, others = files_below(category)
    images: dict[tuple[str, str], list[Path]] = defaultdict(list)
    masks: dict[str, list[Path]] = defaultdict(list)
    stray = 0
    for path in image_files:
        match path.relative_to(category).parts:
            case "ground_truth", kind, _:
                masks[kind].append(path)
            case part, kind, _ if part in splits:
                images[part, kind].append(path)
            case part, *_ if part in splits:
                stray += 1
    entries: list[Entry] = []
    unused = set() if "test" not in splits else {m for k in masks if k != GOOD for m in masks[k]}
    for (part, kind), paths in images.items():
        pairs = match_masks(paths, masks[kind]) if kind != GOOD else {}
        unused -= set(pairs.values())
        entries += [
            Entry(
                path=relative(image, root),
                category=category.name,
                defect=kind,
                label=LABEL_NORMAL if kind == GOOD else LABEL_ANOMALOUS,
                mask=relative(pairs[image], root) if image in pairs else "",
                train=part == "train",
            )
            for image in paths
        ]
    no_images = sum(path.relative_to(category).parts[0] in splits for path in others)
    extra = sorted(relative(mask, root) for mask in unused)
    notes = [
        *noted(extra, "mask", "without an image, ignored"),
        *noted(stray, "image", "not directly in a defect folder, ignored"),
        *noted(no_images, "file", NO_IMAGE),
    ]
    return Scan(entries, [category.name], [f"{category.name}: {note}" for note in notes])


def _no_category(root: Path) -> str:
    names = [folder.name for folder in subfolders(root)]
    advice = "Check the root, or choose another layout (`spg-pipe datasets` shows them)"
    if {"train", "test"} & {*names}:
        advice = f"{root} is itself one category: use {root.parent} as the root"
    return (
        f"No category of the mvtec layout in {root}: expected <category>/test/good, "
        f"<category>/test/<defect> and <category>/ground_truth/<defect>. It holds the folders "
        f"{listed(names) or '(none)'}. {advice}."
    )
