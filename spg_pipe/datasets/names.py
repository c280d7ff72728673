"""What names of folders and masks say; of folders in any case, words joined anyhow."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from spg_pipe.images.files import is_image

GOOD = "good"
"""The defect of normal images."""
Place = tuple[str, ...]
"""Names of the folders that tell a file's class, outermost first."""

_NORMAL = re.compile(
    "goods?|normals?|nominal|ok(ay)?|pass(ed)?|free|intact|healthy|i_?o|gut"
    "|(no|non|not|without)_?(defect(s|ive)?|anomal(y|ies|ous)|damaged?)|(defect|fault|anomaly)_free"
)
_PART = re.compile(r"\d+|copy|of|kopie")
"""Of names of several folders of one class: `good_2`, `good - Copy`."""
_MASKS = re.compile("masks?|ground_?truths?")
_MASK_WORD = (
    "masks?|(?:ground[ _.-]?)?truths?|gts?|labels?|labs?|ann(?:o|otation)?s?|seg(?:mentation)?s?"
)
"""What the name of a mask, or of its folder, may say, in lower case."""
_PERHAPS_MASKS = re.compile(_MASK_WORD)
_NOTHING = re.compile(
    "((images?|imgs?|rgb|data|photos?|pictures?|jpegimages|train(ing)?|test(ing)?|originals?"
    "|val(id|idation)?|un(labell?ed|annotated|sorted|classified))(_|$))+"
    "|test_public|test_private(_mixed)?"
)
_SPLIT = re.compile("train(ing)?|test(ing)?|val(id|idation)?")
_WORD = rf"(?P<word>{_MASK_WORD})"
_GAP = r"[\s_.+~(){}\[\]-]"
"""Between words of a file's name."""
# A number or brackets behind the word are a copy's or a part's: `1_mask (1)`, `1_[mask]_0001`.
_SUFFIX = re.compile(
    rf"(?P<stem>.+?)(?P<mark>{_GAP}+{_WORD})(?:{_GAP}*\d{{1,6}})?{_GAP}*", re.IGNORECASE
)
_PREFIX = re.compile(rf"(?P<mark>{_WORD}(?:{_GAP}+|(?=\d)))(?P<stem>.+)", re.IGNORECASE)
_IMAGE = re.compile(r"^(?:images?|imgs?)[ _.-]+(?=.)")
_LAST_WORD = re.compile(rf"(?P<stem>.*[^\W_])({_GAP}+|(?<=\d))[^\W\d_]+\)?([ _-]?\d{{1,6}})?")
_LAST_NUMBER = re.compile(rf"(?P<stem>.*[^\W_]){_GAP}+\d+{_GAP}*")


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), by which names are compared."""
    return unicodedata.normalize("NFC", name)


def form(name: str) -> str:
    """A name as names of files are compared: composed, in any case."""
    return composed(name).casefold()


def known_as(file: Path) -> set[str]:
    """Names of an image, as `form`, by which masks may call it: `mask_1` is of `image_1`."""
    return {form(file.stem), _IMAGE.sub("", form(file.stem))}


def plain(name: str) -> str:
    """A name in lower case, its words apart by `_`: `Ground-Truth` → `ground_truth`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", composed(name))
    return re.sub(r"[\W_]+", "_", apart).strip("_").lower()


@cache
def is_normal(name: str) -> bool:
    """Whether a folder's images are normal: `good`, `OK_2`, `NODefect_images`."""
    words = [w for w in plain(name).split("_") if not (says_nothing(w) or _PART.fullmatch(w))]
    return bool(_NORMAL.fullmatch("_".join(words)))


@cache
def says_nothing(name: str) -> bool:
    """Whether a folder says nothing of the class of what is in it: `images`, `train_img`."""
    return bool(_NOTHING.fullmatch(plain(name)))


@cache
def is_mask_folder(name: str) -> bool:
    """Whether a folder holds masks, whatever they look like."""
    return bool(_MASKS.fullmatch(plain(name)))


@cache
def may_hold_masks(name: str) -> bool:
    """Whether a folder may hold masks: then the pictures say."""
    return any(map(_PERHAPS_MASKS.fullmatch, plain(name).split("_")))


@cache
def class_in(name: str) -> str:
    """What a folder's name says beside `masks`, `images`, …: `NG` of `NG_masks`; as `plain`."""
    words = plain(name).replace("ground_truth", "truth").split("_")
    return "_".join(w for w in words if not (_NOTHING.fullmatch(w) or _PERHAPS_MASKS.fullmatch(w)))


def mark_of(stem: str) -> re.Match[str] | None:
    """What in a file's name says that it is a mask (`mark`, `word`), and the rest (`stem`)."""
    return _SUFFIX.fullmatch(stem) or _PREFIX.fullmatch(stem)


def is_mask_word(stem: str) -> bool:
    """Whether a file is called `mask`, `label`, `gt`, … and nothing else that says something."""
    return may_hold_masks(stem) and not class_in(stem)


def shorter(stem: str) -> Iterator[str]:
    """A name without its last words, if of letters: `7_deep_scratch_1` → `7_deep`, `7`."""
    while match := _LAST_WORD.fullmatch(stem):
        yield (stem := match["stem"])


def unnumbered(stem: str) -> str:
    """A name without its last number: `7_1` → `7`; empty if there is none."""
    return match["stem"] if (match := _LAST_NUMBER.fullmatch(stem)) else ""


def image_names(stem: str) -> Iterable[str]:
    """Names that the image of a mask may have, the likeliest first."""
    whole = [stem, _without_ending(stem)]  # x.jpg.png
    marked = [mark["stem"] for name in whole if (mark := mark_of(name))]
    return dict.fromkeys([stem, *marked, *map(_without_ending, [stem, *marked])])


def _without_ending(name: str) -> str:
    return Path(name).stem if is_image(Path(name)) else name


def splits_in(parts: Iterable[str]) -> set[str]:
    """The splits that folders name: `images/Train` → `tr`."""
    return {plain(part)[:2] for part in parts if _SPLIT.fullmatch(plain(part))}


def place_of(folder: Path, file: Path) -> Place:
    """The folders between `folder` and a file that tell its class."""
    return tuple(p for p in file.relative_to(folder).parts[:-1] if not says_nothing(p))


def mask_places(
    folder: Path, masks: Iterable[Path], images: Mapping[Path, Place]
) -> dict[Path, Place]:
    """Mask → its image's folders below `folder`, as far as its own tell them.

    A folder that may hold masks is left out, unless images have it and another one holds these; or
    unless it says that they are of normal images, of which there are some.
    """
    classes = {part for place in images.values() for part in place}
    some_normal = any(map(is_normal, classes))
    places = {}
    for mask in masks:
        place = place_of(folder, mask)
        maybe = [part for part in place if may_hold_masks(part)]
        holds = [p for p in maybe if is_mask_folder(p) or p not in classes] or maybe[:1]
        holds = [p for p in holds if not (some_normal and is_normal(class_in(p)))]
        places[mask] = tuple(part for part in place if part not in holds)
    return places
