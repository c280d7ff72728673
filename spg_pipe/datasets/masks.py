"""Which image files are masks: by the ways in which people keep them.

- A folder of masks: `mask`, `ground_truth`, `GT`, `labels`, … at any depth.
- A mark at the name of an image beside it: `x_mask`, `x_GT`, `x_label`, `mask_x`, …
- The name of an image beside it with another ending or one more word (`x_scratch`), where it looks
  like a mask and the image does not; or a name such as `mask` alone beside one image.
- A word that may mean something else (`label/`, `x_seg`) counts where the picture looks like one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spg_pipe.datasets.names import (
    GOOD,
    Place,
    composed,
    form,
    image_names,
    is_mask_folder,
    is_mask_word,
    is_normal,
    known_as,
    mark_of,
    may_hold_masks,
    plain,
    shorter,
    unnumbered,
)
from spg_pipe.errors import noted
from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.looks import Look, is_like_mask, look
from spg_pipe.images.reading import read_mask

_UNLIKE = "not like a mask to look at"
_Item = TypeVar("_Item")
_Seen = TypeVar("_Seen")
_LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
_SOME = 16
"""Of many files alike, looked at."""


@dataclass(frozen=True)
class Sorting:
    """Image files of a folder, told apart. In the order in which they were given."""

    images: list[Path]
    masks: dict[Path, str]
    """Mask → the rule by which it is one, for people."""
    doubts: list[str]
    """Notes on images that could be masks."""


def sort_masks(root: Path, files: Sequence[Path]) -> Sorting:
    """Tell masks from images, by the names below `root`, and by pixels where names do not do.

    Pixels are looked at of files that share their name with a neighbour, and of those whose mark
    may mean something else: of many alike in one folder, of a few.
    """
    products = _products(root, files)
    at: dict[str, set[Path]] = defaultdict(set)
    for file in files:
        for stem in known_as(file):
            at[stem].add(file.parent)
    masks: dict[Path, str] = {}
    unlike: dict[str, list[Path]] = defaultdict(list)
    doubtful: dict[tuple[Path, str, bool], list[Path]] = defaultdict(list)
    for file in files:
        folders = _holders(root, file, products)
        rule, sure = _rule(file, folders, at)
        if sure:
            masks[file] = rule
        elif rule:
            doubtful[file.parent, rule, bool(folders)].append(file)
    for (folder, rule, alone), some in doubtful.items():
        fits = not alone or any(_is_named_elsewhere(file, folder, at) for file in some)
        for file, like in zip(some, _each(some, is_like_mask), strict=True):
            if like and fits:
                masks[file] = rule
            else:
                why = "no image elsewhere has their names" if like else _UNLIKE
                unlike[f"named like masks {rule}, but {why}"].append(file)
    by_ending, unclear = _by_endings([file for file in files if file not in masks])
    if unclear:
        unlike[f"that differ in their endings alone, but {_UNLIKE}"] = unclear
    doubts = [
        note
        for why, some in unlike.items()
        for note in noted(some, "image", f"{why}, taken for images", root)
    ]
    by_ending |= _by_longer_names([f for f in files if f not in masks and f not in by_ending])
    rules = masks | by_ending
    images = [file for file in files if file not in rules]
    doubts += _unnamed(root, images) + _numbered(root, images)
    return Sorting(images, {f: rules[f] for f in files if f in rules}, doubts)


def mask_notes(
    root: Path, masks: Collection[Path], rules: Mapping[Path, str], what: str = ""
) -> list[str]:
    """One line a rule: how many masks are such by it, and some of their names below `root`."""
    by_rule: dict[str, list[Path]] = defaultdict(list)
    for mask in sorted(masks):
        by_rule[rules[mask]].append(mask)
    return [n for rule, some in by_rule.items() for n in noted(some, "mask", what + rule, root)]


def used_masks(masks: Collection[Path], given: Collection[Path]) -> set[Path]:
    """Masks that are given to an image, alone or in a folder."""
    known = {*given}
    return {mask for mask in masks if {mask, mask.parent} & known}


def normal_folders(names: Collection[str], masks: Mapping[Path, Place]) -> set[str]:
    """Those of a category's class folders that hold normal images, by their names.

    Beside `good`, another word for it with masks that are not empty is the name of a defect.
    """
    normal = {name for name in names if is_normal(name)}
    good = {name for name in normal if plain(name) == GOOD}
    others = normal - good if good else set()
    of: dict[str, list[Path]] = defaultdict(list)
    for mask, place in masks.items():
        of["".join(place[:1])].append(mask)
    return normal - {name for name in others if some_not_empty(of[name])}


def some_not_empty(masks: Sequence[Path]) -> list[Path]:
    """The masks, if of the first few one is not empty."""
    return [*masks] if not all(map(is_empty, masks[:_SOME])) else []


def is_empty(mask: Path) -> bool:
    """Whether a mask has no pixel of a defect; one that cannot be read is not empty."""
    try:
        return not read_mask(mask, exif=False).any()
    except UnusableFileError:
        return False


def _each(items: Sequence[_Item], see: Callable[[_Item], _Seen]) -> list[_Seen]:
    """What `see` says of each item; where it says one thing of the first few, of all."""
    some = [see(item) for item in items[:_SOME]]
    alike = len({*some}) == 1
    return some + [some[0] if alike else see(item) for item in items[_SOME:]]


def _products(root: Path, files: Sequence[Path]) -> set[Place]:
    """Folders below `root` that are named like masks, but hold photographs of normal images."""
    firsts: dict[Place, Path] = {}
    for file in (file for file in files if not mark_of(file.stem)):
        parts = file.relative_to(root).parts[:-1]
        above = next((i for i, part in enumerate(parts) if is_normal(part)), 0)
        for i, part in enumerate(parts[:above]):
            if may_hold_masks(part):
                firsts.setdefault(parts[: i + 1], file)
    looks = {folder: look(file) for folder, file in firsts.items()}
    return {folder for folder, (kind, shape) in looks.items() if kind is Look.PHOTO and shape}


def _holders(root: Path, file: Path, products: Collection[Place]) -> list[str]:
    """A file's folders that may hold masks, outermost first."""
    parts = file.relative_to(root).parts[:-1]
    return [
        part
        for i, part in enumerate(parts)
        if may_hold_masks(part) and parts[: i + 1] not in products
    ]


def _is_named_elsewhere(file: Path, folder: Path, at: Mapping[str, set[Path]]) -> bool:
    """Whether an image in another folder may be a mask's, by its name."""
    names = {folder.name, *image_names(file.stem)}
    return any(at.get(form(name), set()) - {folder} for name in names)


def _rule(file: Path, folders: Sequence[str], at: Mapping[str, set[Path]]) -> tuple[str, bool]:
    """The rule by which a file's name makes it a mask, and whether that is sure; or nothing."""
    marked, sure = "", False
    if mark := mark_of(file.stem):
        sure = is_mask_folder(mark["word"]) or mark["word"].lower() == "gt"
        marked = f"by the {'suffix' if mark.start('mark') else 'prefix'} {mark['mark']}"
    if folders:
        also = marked.replace("by ", " and ", 1)
        return f"by the folder {folders[0]}/{also}", sure or any(map(is_mask_folder, folders))
    if is_mask_word(file.stem):
        return f"by the name {file.stem}", False
    if mark and file.parent in at.get(form(mark["stem"]), ()):
        return marked, sure
    return (f"{marked} alone", False) if sure else ("", False)


def _unnamed(root: Path, images: Sequence[Path]) -> list[str]:
    """A note on folders whose pictures look like masks of images of the same names elsewhere.

    A mask's file is far smaller than its image's; of a folder with such files one is looked at.
    """
    same: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        same[form(image.stem)].append(image)
    small: dict[Path, list[Path]] = defaultdict(list)
    for files in (files for files in same.values() if len(files) > 1):
        sizes = {file: file.stat().st_size for file in files}
        for file in files:
            if 2 * sizes[file] < max(sizes.values()):
                small[file.parent].append(file)
    masks = [f for some in small.values() if look(some[0])[0] is Look.FEW_COLOURS for f in some]
    what = "like masks to look at, taken for images: if they are masks, call their folder masks/"
    return noted(sorted(masks), "image", what, root)


def _by_endings(files: Sequence[Path]) -> tuple[dict[Path, str], list[Path]]:
    """Masks that differ from their images in their endings, with the rule; and what is unclear."""
    masks: dict[Path, str] = {}
    unclear: list[Path] = []
    for twins in _twins(files):
        for same, mask in zip(twins, _each(twins, _mask_among), strict=True):
            if mask is None:
                unclear += same
            else:
                endings = f"{same[mask].suffix} beside {same[1 - mask].suffix}"
                masks[same[mask]] = f"by the ending {endings} of the same name"
    return masks, unclear


def _by_longer_names(files: Sequence[Path]) -> dict[Path, str]:
    """Masks that are called like the image beside them and one more word: `7_scratch.png`."""
    named = {(file.parent, form(file.stem)): file for file in files}
    alike: dict[tuple[Path, str], list[list[Path]]] = defaultdict(list)
    for file in files:
        for name in shorter(form(file.stem)):
            if image := named.get((file.parent, name)):
                alike[file.parent, form(file.stem)[len(name) :]].append([image, file])
    return {
        pair[1]: "by the name of the image beside it and one more word"
        for pairs in alike.values()
        for pair, mask in zip(pairs, _each(pairs, _is_mask_of), strict=True)
        if mask
    }


def _numbered(root: Path, images: Sequence[Path]) -> list[str]:
    """A note on pictures like masks that are called like the image beside them and a number.

    They may also be blank frames of a series.
    """
    named = {(file.parent, form(file.stem)): file for file in images}
    series: dict[Path, list[list[Path]]] = defaultdict(list)
    for file in images:
        if image := named.get((file.parent, unnumbered(form(file.stem)))):
            series[file.parent].append([image, file])
    masks = [
        pair[1]
        for pairs in series.values()
        for pair, mask in zip(pairs, _each(pairs, _is_mask_of), strict=True)
        if mask
    ]
    what = "like masks to look at, taken for images: if they are masks, call them x_mask"
    return noted(masks, "image", what, root)


def _is_mask_of(pair: Sequence[Path]) -> bool:
    """Whether the second picture looks like a mask, of any size, and the first one does not."""
    (image, _), (mask, _) = map(look, pair)
    sure = mask is Look.FEW_COLOURS or pair[1].suffix.lower() in _LOSSY
    return sure and mask.value < image.value


def _twins(files: Sequence[Path]) -> list[list[list[Path]]]:
    """Files of one folder and name but other endings; those of one folder and endings together."""
    keys = [(file.parent, form(file.stem)) for file in files]
    times = Counter(keys)
    named: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file, key in zip(files, keys, strict=True):  # of more than two the exact case tells
        named[key if times[key] < 3 else (file.parent, composed(file.stem))].append(file)
    twins: dict[tuple[Path, Place], list[list[Path]]] = defaultdict(list)
    for same in named.values():
        endings = tuple(file.suffix.lower() for file in same)
        if len({*endings}) > 1:
            twins[same[0].parent, endings].append(same)
    return [*twins.values()]


def _mask_among(same: Sequence[Path]) -> int | None:
    """Which of two files of one name is the mask; None if that cannot be seen."""
    if len(same) != 2:
        return None
    (first, shape), (second, other_shape) = map(look, same)
    if shape[:2] != other_shape[:2] or first is second:
        return None
    mask = 0 if first.value < second.value else 1
    backlit = (first, second)[mask] is Look.TWO_TONED and same[mask].suffix.lower() not in _LOSSY
    return None if backlit else mask
