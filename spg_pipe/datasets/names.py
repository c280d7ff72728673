"""What names of folders say: normal images, masks, or nothing; in any case, words joined anyhow."""

import re
import unicodedata
from functools import cache
from pathlib import Path

GOOD = "good"
"""The defect of normal images."""
Place = tuple[str, ...]
"""Names of the folders that tell a file's class, outermost first."""

_NORMAL = re.compile(
    "goods?|normals?|nominal|ok(ay)?|pass(ed)?|free|intact|healthy|i_?o|gut"
    "|(no|non|without)_?defect(s|ive)?|(defect|fault|anomaly)_free"
)
_MASKS = re.compile("masks?|ground_?truths?")
_PERHAPS_MASKS = re.compile(
    "masks?|(ground)?truths?|gts?|labels?|labs?|ann(o|otation)?s?|seg(mentation)?s?"
)
_NOTHING = re.compile(
    "((images?|imgs?|rgb|data|photos?|pictures?|jpegimages|train(ing)?|test(ing)?|originals?"
    "|val(id|idation)?)(_|$))+|test_public|test_private(_mixed)?"
)


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), by which names are compared."""
    return unicodedata.normalize("NFC", name)


def plain(name: str) -> str:
    """A name in lower case, its words apart by `_`: `Ground-Truth` → `ground_truth`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", composed(name))
    return re.sub(r"[\W_]+", "_", apart).strip("_").lower()


@cache
def is_normal(name: str) -> bool:
    """Whether a folder's images are normal: `good`, `OK`, `NODefect_images`."""
    words = [word for word in plain(name).split("_") if not says_nothing(word)]
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
    words = plain(name).split("_")
    return "_".join(w for w in words if not (_NOTHING.fullmatch(w) or _PERHAPS_MASKS.fullmatch(w)))


def place_of(folder: Path, file: Path, *, mask: bool = False) -> Place:
    """The folders between `folder` and a file that tell its class; of a mask its image's."""
    parts = file.relative_to(folder).parts[:-1]
    return tuple(p for p in parts if not (says_nothing(p) or (mask and may_hold_masks(p))))
