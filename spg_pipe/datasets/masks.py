"""Which image files are masks, and whose: by the ways in which people keep them.

Rules
-----
- A folder of masks: `mask`, `ground_truth`, `GT`, `labels`, … at any depth.
- A mark at the name of an image beside it: `x_mask`, `x_GT`, `x_label`, `mask_x`, …
- The name of an image beside it with another ending, where one of the two looks like a mask.
- A word that may mean something else (`label/`, `x_seg`) counts where the picture looks like one.
- A mask belongs to the image of its name in the folder of its name; folders that only say what is
  in them (`images`, `train`) do not matter. Masks in a folder that is named like the image are
  parts of one mask. Unicode forms of a name are one name, and so are cases where that is clear.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from spg_pipe.datasets.images import read_image, read_mask
from spg_pipe.datasets.walk import readable, relative
from spg_pipe.errors import SpgError, counted, listed

T = TypeVar("T")
R = TypeVar("R")
Place = tuple[str, ...]
"""Names of the folders that tell a file's class, outermost first."""

_SURE = re.compile("masks?|ground_?truths?")
_MAYBE = re.compile(
    "masks?|(ground)?truths?|gts?|labels?|labs?|ann(o|otation)?s?|seg(mentation)?s?"
)
"""A folder with such a word in its name may be one of masks."""
_WORD = r"(?P<word>masks?|gts?|ground[ _.-]?truth|labels?|lab|seg(?:mentation)?|anno(?:tation)?s?)"
_SUFFIX = re.compile(rf"(?P<stem>.+?)(?P<mark>[ _.-]+{_WORD})(?:[_-]?\d{{1,3}})?", re.IGNORECASE)
_IMAGE = re.compile(r"^(?:images?|imgs?)[ _.-]+(?=.)")
_PREFIX = re.compile(rf"(?P<mark>{_WORD}[ _.-]+)(?P<stem>.+)", re.IGNORECASE)
_PLAIN = re.compile(
    "images?|imgs?|rgb|data|photos?|pictures?|jpegimages|train(ing)?|test(ing)?|val(id|idation)?"
)
"""Words of folders that say nothing of the class of what is in them; of MVTec AD 2 `_PARTS`."""
_PARTS = frozenset({"test_public", "test_private", "test_private_mixed"})
_SAMPLE = 12
"""Of candidates alike that are looked at; if these agree, they speak for all."""
_SIDE = 256
"""Pixels along a side, at most, that a look takes."""
_COLOURS = 16
"""Of a mask at most."""
_THREADS = 4


@dataclass(frozen=True)
class Sorting:
    """Image files of a folder, told apart. In the order in which they were given."""

    images: list[Path]
    masks: dict[Path, str]
    """Mask → the rule by which it is one, for people."""
    doubts: list[str]
    """Notes on images that could be masks."""


def plain(name: str) -> str:
    """A name in lower case, its words apart by `_`: `Ground-Truth` → `ground_truth`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unicodedata.normalize("NFC", name))
    return re.sub(r"[\W_]+", "_", apart).strip("_").lower()


def says_nothing(name: str) -> bool:
    """Whether a folder's name says nothing of the class of what is in it: `images`, `train_img`."""
    return plain(name) in _PARTS or all(map(_PLAIN.fullmatch, plain(name).split("_")))


def is_mask_folder(name: str) -> bool:
    """Whether a folder holds masks by its name alone, whatever they look like."""
    return bool(_SURE.fullmatch(plain(name)))


def may_hold_masks(name: str) -> bool:
    """Whether a folder may hold masks by its name: then the pictures say."""
    return any(map(_MAYBE.fullmatch, plain(name).split("_")))


def place_of(folder: Path, file: Path, *, mask: bool = False) -> Place:
    """The folders between `folder` and a file that tell its class; of a mask its image's."""
    parts = file.relative_to(folder).parts[:-1]
    return tuple(p for p in parts if not (says_nothing(p) or (mask and may_hold_masks(p))))


def sort_masks(root: Path, files: Sequence[Path]) -> Sorting:
    """Tell masks from images, by the names below `root`, and by pixels where names do not do.

    Pixels are looked at of files that share their name with a neighbour, and of those whose mark
    may mean something else; of many alike only a few.
    """
    names = {(file.parent, form(file.stem)) for file in files for form in (_form, _loose_form)}
    masks: dict[Path, str] = {}
    maybe: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        rule, sure = _rule(root, file, names)
        if sure:
            masks[file] = rule
        elif rule:
            maybe[rule].append(file)
    doubts = []
    for rule, candidates in maybe.items():
        alike = _sampled(candidates, lambda file: _look(file)[0] < _PHOTO)
        masks |= {file: rule for file, is_mask in alike.items() if is_mask}
        doubts += _doubted(root, [f for f, is_mask in alike.items() if not is_mask], f"by {rule}")
    twins = _twins([file for file in files if file not in masks])
    masks |= twins.masks
    images = [file for file in files if file not in masks]
    return Sorting(images, masks, doubts + _doubted(root, twins.images, "by their equal names"))


def told(root: Path, masks: Iterable[Path], rules: Mapping[Path, str], what: str = "") -> list[str]:
    """One line a rule: how many masks are such by it, and some of their names below `root`."""
    by_rule: dict[str, list[str]] = defaultdict(list)
    for mask in sorted(masks):
        by_rule[rules[mask]].append(readable(relative(mask, root)))
    return [
        f"{counted(len(names), 'mask')}{what}, by {rule}: {listed(names, 2)}"
        for rule, names in by_rule.items()
    ]


def pair(images: Mapping[Path, Place], masks: Mapping[Path, Place]) -> dict[Path, Path]:
    """Image → its mask, or the folder of its masks, by name; images without one are left out.

    Raises
    ------
    SpgError
        If two images fit one mask, or two masks that are not in a folder of their own one image.
    """
    pairs: dict[Path, list[Path]] = defaultdict(list)
    left = dict(masks)
    for form in (_form, _loose_form):
        owners: dict[tuple[Place, str], list[Path]] = defaultdict(list)
        alone: dict[str, list[tuple[Place, Path]]] = defaultdict(list)
        for image, place in images.items():
            if image not in pairs:
                key = tuple(map(form, place))
                for name in (image.stem, image.name):
                    owners[key, form(name)].append(image)
                    alone[form(name)].append((key, image))
        for mask, place in list(left.items()):
            key = tuple(map(form, place))
            for name, folders, chosen in _addresses(mask, key):
                fitting = owners.get((folders, form(name)), [])
                if not fitting and chosen == mask:
                    fitting = _elsewhere(alone[form(name)], folders)
                if len(fitting) > 1:
                    raise SpgError(
                        f"The images {fitting[0]} and {fitting[1]} share one name, so it is "
                        f"unclear which of them the mask {mask} belongs to. Rename one of them "
                        f"(and its mask)."
                    )
                if fitting:
                    pairs[fitting[0]].append(chosen)
                    del left[mask]
                    break
    return {image: _one_of(image, fitting) for image, fitting in pairs.items()}


def empty_masks(masks: Sequence[Path]) -> set[Path]:
    """Masks without a pixel of a defect; those that cannot be read are not among them."""

    def empty(mask: Path) -> bool:
        try:
            return not read_mask(mask, exif=False).any()
        except SpgError:
            return False

    with ThreadPoolExecutor(_THREADS) as pool:
        return {
            mask for mask, is_empty in zip(masks, pool.map(empty, masks), strict=True) if is_empty
        }


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _loose_form(name: str) -> str:
    """In any case, and `image_1` as `1`, whose mask may be `mask_1`."""
    return _IMAGE.sub("", _form(name).casefold())


def _rule(root: Path, file: Path, names: set[tuple[Path, str]]) -> tuple[str, bool]:
    """The rule by which a file's name makes it a mask, and whether that is sure; or nothing."""
    folders = [part for part in file.relative_to(root).parts[:-1] if may_hold_masks(part)]
    marked, sure = "", False
    if mark := _SUFFIX.fullmatch(file.stem) or _PREFIX.fullmatch(file.stem):
        sure = is_mask_folder(mark["word"]) or mark["word"].lower() == "gt"
        marked = f"the {'suffix' if mark.start('mark') else 'prefix'} {mark['mark']}"
    if folders:
        also = f" and {marked}" if marked else ""
        return f"the folder {folders[0]}/{also}", sure or any(map(is_mask_folder, folders))
    if mark and (file.parent, _form(mark["stem"])) in names:
        return marked, sure
    return (f"{marked} alone", False) if sure else ("", False)


_FEW, _TWO_TONED, _PHOTO = range(3)
"""What a picture looks like: a mask, a mask with a JPEG's noise, a photograph."""


def _look(file: Path) -> tuple[int, tuple[int, ...]]:
    """What a picture looks like, and its shape. One that cannot be read is none of a mask."""
    try:
        pixels = read_image(file, exif=False)
    except SpgError:
        return _PHOTO, ()
    shape, step = pixels.shape, max(1, max(pixels.shape[:2]) // _SIDE)
    part = pixels[::step, ::step].reshape(-1, 3).astype(np.int64)
    colours = len(np.unique(part @ np.array([1 << 32, 1 << 16, 1])))
    if colours <= min(_COLOURS, len(part) // 4):
        return _FEW, shape
    white = np.iinfo(pixels.dtype).max
    bright, middle = (
        (part > 0.85 * white).mean(),
        ((part > 0.15 * white) & (part <= 0.85 * white)).mean(),
    )
    return (_TWO_TONED if middle < min(bright, 0.03) else _PHOTO), shape


def _sampled(items: Sequence[T], look: Callable[[T], R]) -> dict[T, R]:
    """What `look` says of each item: of a sample, if it says the same of all of these."""
    known = {item: look(item) for item in items[:: max(1, len(items) // _SAMPLE)]}
    outcomes = set(known.values())
    if len(outcomes) == 1:
        return dict.fromkeys(items, outcomes.pop())
    return {item: known[item] if item in known else look(item) for item in items}


def _twins(files: Sequence[Path]) -> Sorting:
    """Of files that differ in their ending alone: the masks, and those that could be any."""
    named: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for file in files:
        named[file.parent, _form(file.stem)].append(file)
    doubtful = [file for same in named.values() if len(same) > 2 for file in same]
    endings: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for same in named.values():
        if len(same) == 2:
            first, second = sorted(same, key=lambda file: file.suffix)
            endings[first.suffix, second.suffix].append((first, second))
    masks: dict[Path, str] = {}
    for pairs in endings.values():
        for twins, number in _sampled(pairs, _mask_among).items():
            if number is None:
                doubtful += twins
            else:
                mask, image = twins[number], twins[1 - number]
                masks[mask] = f"the name of an image ({image.suffix}) with the ending {mask.suffix}"
    return Sorting(doubtful, masks, [])


def _mask_among(twins: tuple[Path, Path]) -> int | None:
    """Which of two files of one name is the mask; None if that cannot be seen."""
    (first, shape), (second, other_shape) = map(_look, twins)
    if shape[:2] != other_shape[:2] or first == second:
        return None
    return int(second < first)


def _doubted(root: Path, images: Sequence[Path], why: str) -> list[str]:
    if not images:
        return []
    names = listed([readable(relative(image, root)) for image in images], 2)
    what = f"{counted(len(images), 'image')} could be masks {why}, but do not look like masks"
    return [f"{what}: taken for images: {names}"]


def _addresses(mask: Path, place: Place) -> Iterator[tuple[str, Place, Path]]:
    """Names that a mask's image may have, the image's place, and what is then its mask."""
    mark = _SUFFIX.fullmatch(mask.stem) or _PREFIX.fullmatch(mask.stem)
    yield mask.stem, place, mask
    if mark:
        yield mark["stem"], place, mask
    if place:
        yield place[-1], place[:-1], mask.parent


def _elsewhere(images: Sequence[tuple[Place, Path]], place: Place) -> list[Path]:
    """The image of a name whose folders begin or end with the mask's, if there is only one."""
    n = len(place)
    fitting = {i: None for p, i in images if p[:n] == place or (n and p[-n:] == place)}
    return list(fitting) if len(fitting) == 1 else []


def _one_of(image: Path, masks: Sequence[Path]) -> Path:
    """The mask of an image, or the folder of its masks."""
    if len(set(masks)) > 1 and not _alike(masks):
        together = masks[0].parent / "masks" / image.stem
        raise SpgError(
            f"Several masks fit the image {image}: {listed([str(mask) for mask in masks])}. Keep "
            f"one of them; or, if each shows a part, move them into a folder {together}."
        )
    return masks[0]


def _alike(masks: Sequence[Path]) -> bool:
    """Whether masks mark the same pixels, as those that tools write by class and by object."""
    try:
        first, *others = (read_mask(mask, exif=False) for mask in masks)
    except SpgError:
        return False
    return all(np.array_equal(first, other) for other in others)
