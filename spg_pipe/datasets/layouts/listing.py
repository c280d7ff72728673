"""What a layout is, and what its scanner finds."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN, MaskState
from spg_pipe.datasets.names import GOOD, is_normal
from spg_pipe.datasets.walk import relative
from spg_pipe.errors import noted

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


def good_notes(names: Iterable[str]) -> list[str]:
    """What was taken for `good`, of the names of all class folders."""
    words = sorted({name for name in names if is_normal(name)} - {GOOD})
    return noted(words, "folder name", f"taken for {GOOD}, normal images")


def entry_of(
    root: Path, category: str, image: Path, kind: str, mask: Path | None, train: bool = False
) -> Entry:
    """The entry of an image of the defect `kind`, or `good`; empty: of no class."""
    normal = kind == GOOD
    return Entry(
        path=relative(image, root),
        category=category,
        defect=GOOD if normal else kind,
        label=LABEL_NORMAL if normal else LABEL_ANOMALOUS if kind else LABEL_UNKNOWN,
        mask=relative(mask, root) if mask and not normal else "",
        train=train,
    )


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
