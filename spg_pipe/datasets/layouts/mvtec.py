"""The `mvtec` layout: the official folders of MVTec AD, for any category names.

A mask belongs to the image of its name, never to the image of its position: a single file that
is missing would shift every later pair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spg_pipe.datasets.layouts.listing import NO_IMAGE, Entry, Layout, Scan, Select, noted
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL
from spg_pipe.datasets.walk import files_in, relative, subfolders
from spg_pipe.errors import SpgError, counted, listed

GOOD = "good"


@dataclass
class _Tally:
    """What the walk through the categories has gathered so far."""

    entries: list[Entry] = field(default_factory=list)
    without_mask: list[str] = field(default_factory=list)
    extra_masks: list[str] = field(default_factory=list)
    without_split: list[str] = field(default_factory=list)
    others: int = 0
    stray: int = 0


def scan_mvtec(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks of every wanted category; a `Layout.scan`.

    SpgError if no category is there, a defect image has no mask, or a name fits two files.
    """
    folders = [f for f in subfolders(root) if (f / "test").is_dir() or (f / "train").is_dir()]
    if not folders:
        raise SpgError(_no_category(root))
    splits = ("train", "test") if split == "all" else (split,)
    tally = _Tally()
    for folder in folders:
        if select(folder.name):
            before = len(tally.entries)
            for part in splits:
                _scan_split(root, folder, part, tally)
            if len(tally.entries) == before:
                tally.without_split.append(folder.name)
    if missing := tally.without_mask:
        raise SpgError(
            f"{counted(len(missing), 'defect image')} in {root} without a mask: "
            f"{listed(missing)}. Masks are matched by name. Put the masks there; or, where none "
            f"exist, use the `folder` layout, in which a defect image may lack its mask."
        )
    return Scan(tally.entries, [f.name for f in folders], _notes(root, folders, splits, tally))


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


def match_masks(
    images: Sequence[Path], masks: Sequence[Path]
) -> tuple[dict[Path, Path], list[Path]]:
    """Pair images and masks of one defect by name: `<stem>_mask.*`, or the same stem.

    Image → mask, for the images that have one; and masks that belong to no image. SpgError if two
    images share a stem, or two masks fit one image.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        by_stem[mask.stem].append(mask)
    pairs: dict[Path, Path] = {}
    owner: dict[str, Path] = {}
    for image in images:
        fitting = by_stem.get(f"{image.stem}_mask", []) + by_stem.get(image.stem, [])
        if fitting and image.stem in owner:
            raise SpgError(
                f"The images {owner[image.stem]} and {image} share one name, so it is unclear "
                f"which of them a mask belongs to. Rename one of them (and its mask)."
            )
        owner[image.stem] = image
        if len(fitting) > 1:
            raise SpgError(
                f"Several masks fit the image {image}: {listed([str(m) for m in fitting])}. "
                f"Keep one of them."
            )
        if fitting:
            pairs[image] = fitting[0]
    used = set(pairs.values())
    return pairs, [m for m in masks if m not in used]


def _scan_split(root: Path, category: Path, part: str, tally: _Tally) -> None:
    """Add the images of `train` or `test` of one category."""
    stray = files_in(category / part)
    tally.stray += len(stray.images)
    tally.others += stray.others
    kinds = subfolders(category / part)
    for kind in kinds:
        images, others = files_in(kind)
        tally.others += others
        normal = kind.name == GOOD
        pairs = {} if normal else _masks_of(root, category, kind, images, tally)
        tally.entries += [
            Entry(
                path=relative(image, root),
                category=category.name,
                defect=kind.name,
                label=LABEL_NORMAL if normal else LABEL_ANOMALOUS,
                mask=relative(pairs[image], root) if image in pairs else "",
                train=part == "train",
            )
            for image in images
        ]
    if part == "test":
        with_images = {GOOD, *(kind.name for kind in kinds)}
        for folder in subfolders(category / "ground_truth"):
            if folder.name not in with_images:
                tally.extra_masks += [relative(p, root) for p in files_in(folder).images]


def _masks_of(
    root: Path, category: Path, kind: Path, images: Sequence[Path], tally: _Tally
) -> dict[Path, Path]:
    folder = category / "ground_truth" / kind.name
    pairs, extra = match_masks(images, files_in(folder).images)
    tally.extra_masks += [relative(p, root) for p in extra]
    for image in images:
        if image not in pairs:
            expected = relative(folder / f"{image.stem}_mask.png", root)
            tally.without_mask.append(f"{relative(image, root)} (expected {expected})")
    return pairs


def _notes(root: Path, folders: Sequence[Path], splits: Sequence[str], tally: _Tally) -> list[str]:
    notes = []
    if tally.without_split:
        notes.append(f"no {' or '.join(splits)} images in: {listed(tally.without_split)}")
    notes += noted(tally.extra_masks, "mask", "without an image, ignored")
    notes += noted(tally.stray, "image", "beside the defect folders, not inside one, ignored")
    notes += noted(tally.others, "file", NO_IMAGE)
    if ignored := [f.name for f in subfolders(root) if f not in folders]:
        notes.append(f"folders without train/ and test/ ignored: {listed(ignored)}")
    return notes


def _no_category(root: Path) -> str:
    if (root / "test").is_dir() or (root / "train").is_dir():
        return (
            f"{root} is itself one category (it holds train/ or test/), but the mvtec layout "
            f"starts one folder above: use {root.parent} as the root."
        )
    names = [f.name for f in subfolders(root)]
    has = f"It holds the folders {listed(names)}" if names else "It holds no folders"
    return (
        f"No category of the mvtec layout in {root}: expected <category>/test/good, "
        f"<category>/test/<defect> and <category>/ground_truth/<defect>. {has}. Check the root, "
        f"or choose another layout (`spg-pipe datasets` shows them)."
    )
