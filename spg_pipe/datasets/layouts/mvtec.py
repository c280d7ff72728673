"""The `mvtec` layout: the official folders of MVTec AD, for any category names.

A mask belongs to the image of its name, never to the image of its position: a single file that
is missing would shift every later pair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from spg_pipe.datasets.layouts.listing import NO_IMAGE, Entry, Layout, Scan, Select, noted
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, MaskState
from spg_pipe.datasets.walk import files_in, relative, subfolders
from spg_pipe.errors import SpgError, counted, listed

GOOD = "good"


class _Part(NamedTuple):
    """What lies in `train` or `test` of one category."""

    entries: list[Entry]
    extra_masks: list[str]
    """Of no image."""
    stray: int
    """Images beside the defect folders."""
    others: int
    """Files that are no images."""


def scan_mvtec(root: Path, split: str, select: Select) -> Scan:
    """Find the images and masks of every wanted category; a `Layout.scan`.

    SpgError if no category is there, a defect image has no mask, or a name fits two files.
    """
    folders = [f for f in subfolders(root) if (f / "test").is_dir() or (f / "train").is_dir()]
    if not folders:
        raise SpgError(_no_category(root))
    names = ("train", "test") if split == "all" else (split,)
    scanned = {f.name: [_scan_part(root, f, n) for n in names] for f in folders if select(f.name)}
    parts = [part for of_category in scanned.values() for part in of_category]
    entries = [entry for part in parts for entry in part.entries]
    missing = [
        f"{entry.path} (expected {category}/ground_truth/{entry.defect}/{stem}_mask.png)"
        for entry in entries
        if entry.mask_state == MaskState.MISSING
        for category, stem in [(entry.category, PurePosixPath(entry.path).stem)]
    ]
    if missing:
        raise SpgError(
            f"{counted(len(missing), 'defect image')} in {root} without a mask: "
            f"{listed(missing)}. Masks are matched by name. Put the masks there; or, where none "
            f"exist, use the `folder` layout, in which a defect image may lack its mask."
        )
    empty = [
        name for name, of_category in scanned.items() if not any(p.entries for p in of_category)
    ]
    extra_masks = [mask for part in parts for mask in part.extra_masks]
    ignored = [folder.name for folder in subfolders(root) if folder not in folders]
    notes = [
        *noted(extra_masks, "mask", "without an image, ignored"),
        *noted(
            sum(part.stray for part in parts),
            "image",
            "beside the defect folders, not inside one, ignored",
        ),
        *noted(sum(part.others for part in parts), "file", NO_IMAGE),
        *noted(ignored, "folder", "without train/ and test/, ignored"),
    ]
    if empty:
        notes.append(f"no {' or '.join(names)} images in: {listed(empty)}")
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
    used = set(pairs.values())
    return pairs, [m for m in masks if m not in used]


def _scan_part(root: Path, category: Path, part: str) -> _Part:
    """The images of `train` or `test` of one category, with the masks of their names."""
    stray, others = files_in(category / part)
    truth = category / "ground_truth"
    kinds = {folder.name for folder in subfolders(category / part)}
    if part == "test":
        kinds |= {folder.name for folder in subfolders(truth)}
    entries: list[Entry] = []
    extra_masks: list[str] = []
    for kind in sorted(kinds):
        images, no_images = files_in(category / part / kind)
        others += no_images
        pairs, unused = match_masks(images, files_in(truth / kind).images if kind != GOOD else [])
        extra_masks += [relative(mask, root) for mask in unused]
        entries += [
            Entry(
                path=relative(image, root),
                category=category.name,
                defect=kind,
                label=LABEL_NORMAL if kind == GOOD else LABEL_ANOMALOUS,
                mask=relative(pairs[image], root) if image in pairs else "",
                train=part == "train",
            )
            for image in images
        ]
    return _Part(entries, extra_masks, len(stray), others)


def _no_category(root: Path) -> str:
    if (root / "test").is_dir() or (root / "train").is_dir():
        return (
            f"{root} is itself one category (it holds train/ or test/), but the mvtec layout "
            f"starts one folder above: use {root.parent} as the root."
        )
    return (
        f"No category of the mvtec layout in {root}: expected <category>/test/good, "
        f"<category>/test/<defect> and <category>/ground_truth/<defect>. It holds the folders "
        f"{listed([f.name for f in subfolders(root)]) or '(none)'}. Check the root, or choose "
        f"another layout (`spg-pipe datasets` shows them)."
    )
