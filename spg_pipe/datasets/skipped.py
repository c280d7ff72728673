"""Images that `skip_bad` leaves out: which, why, and whether they are still as bad as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from spg_pipe.artefacts.record import Record
from spg_pipe.datasets.walk import Inside
from spg_pipe.errors import counted

_NAMED = 5


class Skipped(Record):
    """An image that could not be used, alone or with its mask. Paths are relative to the root."""

    path: Inside
    mask: Inside
    """Empty if it has none."""
    sha256: str
    """Of the bytes of the image and its mask, one after the other; empty if they cannot be read."""
    reason: str
    """What is wrong, as the end of a sentence that begins with the path."""

    @classmethod
    def of(cls, root: Path, path: str, mask: str, reason: str) -> Skipped:
        """The record of an image below `root`, with the content that it has now."""
        sha256 = _content_hash(root, path, mask)
        return cls(path=path, mask=mask, sha256=sha256, reason=reason)

    def unchanged(self, root: Path) -> bool:
        """Whether the files below `root` are still those that could not be used."""
        return _content_hash(root, self.path, self.mask) == self.sha256

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def skipped_note(skipped: Sequence[Skipped]) -> str:
    """What was left out, in a line: the first few images, each with its reason."""
    more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    named = "; ".join(map(str, skipped[:_NAMED]))
    return f"{counted(len(skipped), 'image')} left out (skip_bad): {named}{more}"


def _content_hash(root: Path, path: str, mask: str) -> str:
    files = [root / name for name in (path, mask) if name]
    if not all(file.is_file() for file in files):  # a pipe or a device would never end
        return ""
    try:
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except OSError:
        return ""
