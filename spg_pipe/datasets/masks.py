"""Which image files are masks, and whose: by the ways in which people keep them.

- A folder of masks: `mask`, `ground_truth`, `GT`, `labels`, … at any depth.
- A mark at the name of an image beside it: `x_mask`, `x_GT`, `x_label`, `mask_x`, …
- The name of an image beside it with another ending or one more word (`x_scratch`), where it looks
  like a mask and the image does not; or a name such as `mask` alone beside one image.
- A word that may mean something else (`label/`, `x_seg`) counts where the picture looks like one.
- It belongs to the image of its name in the folder of its name. Folders that only say what is in
  them (`images`, `train`) do not matter. Masks in a folder that is named like the image are one.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from spg_pipe.datasets.names import (
    GOOD,
    Place,
    class_in,
    composed,
    image_names,
    is_mask_folder,
    is_mask_word,
    is_normal,
    mark_of,
    may_hold_masks,
    plain,
    says_nothing,
    shorter,
)
from spg_pipe.datasets.walk import noted
from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.looks import Look, is_like_mask, look
from spg_pipe.images.reading import read_mask

_IMAGE = re.compile(r"^(?:images?|imgs?)[ _.-]+(?=.)")
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
        for stem in {_form(file.stem), _IMAGE.sub("", _form(file.stem))}:
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
    return Sorting(
        images, {f: rules[f] for f in files if f in rules}, doubts + _unnamed(root, images)
    )


def mask_notes(
    root: Path, masks: Collection[Path], rules: Mapping[Path, str], what: str = ""
) -> list[str]:
    """One line a rule: how many masks are such by it, and some of their names below `root`."""
    by_rule: dict[str, list[Path]] = defaultdict(list)
    for mask in sorted(masks):
        by_rule[rules[mask]].append(mask)
    return [n for rule, some in by_rule.items() for n in noted(some, "mask", what + rule, root)]


def pair(root: Path, images: Mapping[Path, Place], masks: Mapping[Path, Place]) -> dict[Path, Path]:
    """Image → its mask, or the folder of its masks, by name; images without one are left out.

    Both are given with their places; folders above `root` say nothing.

    SpgError if two images fit one mask, or two masks that are not in a folder of their own one
    image.
    """
    at: dict[tuple[Place, str], list[Path]] = defaultdict(list)
    beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    named: dict[str, list[tuple[Place, Path]]] = defaultdict(list)
    inside: dict[Path, list[Path]] = defaultdict(list)
    for image, place in images.items():
        folders, name = tuple(map(_form, place)), _form(image.stem)
        at[folders, name].append(image)
        beside[image.parent, name].append(image)
        inside[image.parent].append(image)
        for known in {name, _IMAGE.sub("", name)}:  # image_1 may have mask_1
            named[known].append((folders, image))
    pairs: dict[Path, Path] = {}
    places = {folders for folders, _ in at}
    classes = {class_in(part) for place in images.values() for part in place} - {""}
    for mask, place in masks.items():
        holds = {*mask.relative_to(root).parts[:-1]} - {*place}
        kinds = classes & {class_in(part) for part in holds if may_hold_masks(part)}
        for name, folders, chosen in _addresses(mask, tuple(map(_form, place))):
            form = _form(name)
            if chosen != mask and (*folders, form) in places:
                continue  # a class with masks, not an image with parts of its mask
            same = beside.get((mask.parent, form)) if chosen == mask else None
            if name == mask.stem and is_mask_word(name):
                same = same or _only(inside[mask.parent])
            owners = same or at.get((folders, form)) or []
            owners = _called(name, owners or _elsewhere(named.get(form, ()), folders, kinds))
            owners = _nearest(root, mask, owners)
            if len(owners) > 1:
                raise SpgError(
                    f"The images {owners[0]} and {owners[1]} share one name, so it is unclear "
                    f"whose mask {mask} is. Rename one of them (and its mask)."
                )
            given = pairs.setdefault(owners[0], chosen) if owners else chosen
            if given != chosen and not _alike(given, chosen):
                together = mask.parent / "masks" / owners[0].stem
                raise SpgError(
                    f"Several masks fit the image {owners[0]}: {pairs[owners[0]]}, {chosen}. Keep "
                    f"one of them; or, if each shows a part, move them into a folder {together}."
                )
            if owners:
                break
    return pairs


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


def _form(name: str) -> str:
    return composed(name).casefold()


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
    names = {folder.name, *(name for name, *_ in _addresses(file, ()))}
    return any(at.get(_form(name), set()) - {folder} for name in names)


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
    if mark and file.parent in at.get(_form(mark["stem"]), ()):
        return marked, sure
    return (f"{marked} alone", False) if sure else ("", False)


def _unnamed(root: Path, images: Sequence[Path]) -> list[str]:
    """A note on folders whose pictures look like masks of images of the same names elsewhere.

    A mask's file is far smaller than its image's; of a folder with such files one is looked at.
    """
    same: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        same[_form(image.stem)].append(image)
    small: dict[Path, Path] = {}
    for files in (files for files in same.values() if len(files) > 1):
        sizes = {file: file.stat().st_size for file in files}
        for file in files:
            if 2 * sizes[file] < max(sizes.values()):
                small.setdefault(file.parent, file)
    masks = {folder for folder, file in small.items() if look(file)[0] is Look.FEW_COLOURS}
    what = "like masks to look at, taken for images: if they are masks, call their folder masks/"
    return noted([image for image in images if image.parent in masks], "image", what, root)


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
    named = {(file.parent, _form(file.stem)): file for file in files}
    alike: dict[tuple[Path, str], list[list[Path]]] = defaultdict(list)
    for file in files:
        for name in shorter(_form(file.stem)):
            if image := named.get((file.parent, name)):
                alike[file.parent, _form(file.stem)[len(name) :]].append([image, file])
    return {
        pair[1]: "by the name of the image beside it and one more word"
        for pairs in alike.values()
        for pair, mask in zip(pairs, _each(pairs, _mask_among), strict=True)
        if mask == 1
    }


def _twins(files: Sequence[Path]) -> list[list[list[Path]]]:
    """Files of one folder and name but other endings; those of one folder and endings together."""
    named: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file in files:
        named[file.parent, _form(file.stem)].append(file)
    twins: dict[tuple[Path, Place], list[list[Path]]] = defaultdict(list)
    for files_of_name in named.values():
        by_case: dict[str, list[Path]] = defaultdict(list)
        for file in files_of_name:
            by_case[composed(file.stem) if files_of_name[2:] else ""].append(file)
        for same in by_case.values():
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


def _addresses(mask: Path, place: Place) -> Iterator[tuple[str, Place, Path]]:
    """Names that a mask's image may have, the image's place, and what is then its mask."""
    yield from ((name, place, mask) for name in image_names(mask.stem))
    if place:
        yield place[-1], place[:-1], mask.parent


def _elsewhere(images: Sequence[tuple[Place, Path]], place: Place, kinds: set[str]) -> list[Path]:
    """The image of a name whose folders begin or end with the mask's, if there is only one.

    And of one of `kinds`, if there are any: `dent_masks/` is of `dent/`.
    """
    n = len(place)
    fitting = (
        [i for p, i in images if p[:n] == place or (n and p[-n:] == place)]
        if not kinds
        else [i for p, i in images if kinds & {*map(class_in, p)}]
    )
    return fitting if len(fitting) == 1 else []


def _called(name: str, images: list[Path]) -> list[Path]:
    """Of images whose names differ in case alone, those with this very name, if there are any."""
    return [i for i in images if composed(i.stem) == composed(name)] or images


def _alike(mask: Path, other: Path) -> bool:
    """Whether masks mark the same pixels, as those that tools write by class and by object."""
    try:
        return np.array_equal(read_mask(mask, exif=False), read_mask(other, exif=False))
    except UnusableFileError:
        return False


def _nearest(root: Path, mask: Path, images: list[Path]) -> list[Path]:
    """Of images of one name, those in the most folders of the mask's: `test/` is not `train/`."""
    parts = {*mask.relative_to(root).parts[:-1]}
    shared = [len(parts & {*image.relative_to(root).parts[:-1]}) for image in images]
    return [image for image, n in zip(images, shared, strict=True) if n == max(shared)]


def _only(images: list[Path]) -> list[Path]:
    """The image of a folder, if there is one, or one that is called `image`, `rgb`, …."""
    called = images[1:] and [image for image in images if says_nothing(image.stem)]
    images = called or images
    return [] if images[1:] else images
