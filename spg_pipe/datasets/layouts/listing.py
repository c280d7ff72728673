"""What a layout is, and what its scanner finds. Names only, no pixels."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.manifest import LABEL_NORMAL, MaskState
from spg_pipe.datasets.masks import plain, says_nothing
from spg_pipe.datasets.walk import readable
from spg_pipe.errors import counted, listed

GOOD = "good"
"""The defect of normal images."""
Select = Callable[[str], bool]
"""Whether a category (by its name within the layout) is wanted."""
_NORMAL = re.compile(
    r"goods?|normals?|nominal|ok(ay)?|pass(ed)?|free|intact|healthy|i_?o|gut"
    r"|(no|non|without)_?defect(s|ive)?|(defect|fault|anomaly)_free"
)
"""What people call normal images, as `masks.plain` writes it."""


@dataclass(frozen=True)
class Entry:
    """One image, before its file is opened. Paths are posix and relative to the layout's root."""

    path: str
    category: str
    defect: str
    label: int
    mask: str = ""
    train: bool = False
    """Whether it belongs to the training split."""
    sha256: str = ""
    """Of the image's bytes as the layout's own record says; empty if it has none."""
    mask_sha256: str = ""
    """Likewise of the mask's."""
    source: str = ""
    """Of a painted set: `source_id` of the normal image behind it."""

    @property
    def mask_state(self) -> MaskState:
        """Normal images have empty masks, others the one that was found, or none."""
        if self.label == LABEL_NORMAL:
            return MaskState.EMPTY
        return MaskState.GIVEN if self.mask else MaskState.MISSING


def source_id(sha256: str) -> str:
    """A short name of an image's content, by which a painted copy tells what it was made from."""
    return sha256[:16]


def content_ids(paths: Iterable[Path]) -> set[str]:
    """`source_id` of files; those that cannot be read have none."""
    ids = set()
    for path in paths:
        with suppress(OSError):
            ids.add(source_id(hashlib.sha256(path.read_bytes()).hexdigest()))
    return ids


class Scan(NamedTuple):
    """The outcome of looking through one root."""

    entries: list[Entry]
    """The images of the wanted categories, in any order."""
    categories: list[str]
    """Every category on disk, wanted or not, sorted."""
    notes: list[str]
    """What a person should know."""
    licence: str = ""
    """As the layout's own record states it; empty if it has none."""


def is_normal(name: str) -> bool:
    """Whether a folder's name says that its images are normal: `good`, `OK`, `NODefect_images`."""
    words = [word for word in plain(name).split("_") if not says_nothing(word)]
    return bool(_NORMAL.fullmatch("_".join(words)))


def normal_notes(names: Iterable[str]) -> list[str]:
    """What was taken for `good`, of the names of all class folders."""
    words = sorted({name for name in names if is_normal(name)} - {GOOD})
    return noted(words, "folder name", f"taken for {GOOD}, normal images")


def noted(items: Sequence[str], noun: str, what: str) -> list[str]:
    """The note `2 masks without a use: a, b`; none of nothing."""
    names = listed([readable(item) for item in items])
    return [f"{counted(len(items), noun)} {what}: {names}"] if items else []


@dataclass(frozen=True)
class Layout:
    """How a dataset lies on disk, described for people, and the scanner that reads it."""

    name: str
    """What `layout:` takes."""
    summary: str
    """One sentence."""
    sketch: str
    """The folders, several lines."""
    scan: Callable[[Path, str, Select], Scan]
    """Finds the images of a root's split (`test`, `train` or `all`) and of the wanted categories.
    Raises SpgError where the folder is not of this layout, or not whole."""
    own_images: bool = False
    """For a person's own images, not a benchmark's: their EXIF orientation may count."""
    splits: bool = True
    """Whether there is a training split; without, `test` and `all` both mean every image."""
