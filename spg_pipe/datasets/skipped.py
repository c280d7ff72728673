"""Images that `skip_bad` leaves out: which, why, and whether they are still as bad as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from spg_pipe.errors import SpgError

_NAMED = 5


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used, alone or with its mask. Paths are relative to the root."""

    path: str
    mask: str
    """Empty if it has none."""
    sha256: str
    """Of the bytes of the image and its mask, one after the other; empty if they cannot be read."""
    reason: str
    """What is wrong, as the end of a sentence that begins with the path."""

    @classmethod
    def of(cls, root: Path, path: str, mask: str, reason: str) -> Skipped:
        """The record of an image below `root`, with the content that it has now."""
        return cls(path, mask, _content_hash(root, path, mask), reason)

    def unchanged(self, root: Path) -> bool:
        """Whether the files below `root` are still those that could not be used."""
        return _content_hash(root, self.path, self.mask) == self.sha256

    def to_dict(self) -> dict[str, str]:
        """Plain values, for a file's metadata."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def recorded(values: object) -> list[Skipped]:
    """The records in a file's metadata, which anybody may have written.

    Raises
    ------
    SpgError
        If they are no records, or name files outside the dataset's root.
    """
    try:
        found = [Skipped(**value) for value in values or ()]  # type: ignore[attr-defined]
        names = [name for bad in found for name in (bad.path, bad.mask)]
        inside = all(not PurePosixPath(n).is_absolute() and ".." not in n.split("/") for n in names)
    except (TypeError, AttributeError, ValueError) as error:
        raise SpgError(f"Its record of skipped images is damaged ({error}).") from error
    if not inside:
        raise SpgError("Its record of skipped images names files outside the dataset's folder.")
    return found


def skipped_note(skipped: Sequence[Skipped]) -> str:
    """What was left out, in a line: the first few images, each with its reason."""
    images = "1 image" if len(skipped) == 1 else f"{len(skipped)} images"
    more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return f"{images} left out (skip_bad): {'; '.join(map(str, skipped[:_NAMED]))}{more}"


def _content_hash(root: Path, path: str, mask: str) -> str:
    content = hashlib.sha256()
    try:
        for name in (path, mask) if mask else (path,):
            if not (root / name).is_file():  # a pipe or a device would never end
                return ""
            content.update((root / name).read_bytes())
    except OSError:
        return ""
    return content.hexdigest()
