"""What a layout's scanner finds, and the helpers to look at folders. Names only, no pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.images import is_image
from spg_pipe.datasets.manifest import LABEL_NORMAL, MaskState

Select = Callable[[str], bool]
"""Whether a category (by its name within the layout) is wanted."""


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


class Files(NamedTuple):
    """The files of a folder: images sorted by name, and how many others there are."""

    images: list[Path]
    others: int


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in `folder`, sorted by name; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def files_in(folder: Path) -> Files:
    """Files directly in `folder`; none if it does not exist."""
    if not folder.is_dir():
        return Files([], 0)
    files = sorted(p for p in folder.iterdir() if p.is_file())
    images = [p for p in files if is_image(p)]
    return Files(images, len(files) - len(images))


def files_below(folder: Path, skip: Sequence[str] = ()) -> Files:
    """Files in `folder` and all its visible subfolders, but for those named in `skip`."""
    images, others = [], 0
    for sub in _walk(folder, set(skip)):
        found = files_in(sub)
        images += found.images
        others += found.others
    return Files(sorted(images), others)


def _walk(folder: Path, skip: set[str]) -> Iterator[Path]:
    """`folder` and its subfolders; links are followed, but never round in a circle."""
    seen: set[str] = set()
    for where, names, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in skip)
        yield Path(where)
