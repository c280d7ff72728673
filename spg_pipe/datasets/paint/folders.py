"""Folders of painted images: whether a set is made already, without losing anything else there."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.errors import SpgError, listed

_ADVICE = "It is left alone. Name another folder, or move it away first."


def is_made(
    root: Path, what: str, name: str, recorded: Callable[[], tuple[bool, Mapping[str, str]]]
) -> bool:
    """Whether a folder holds the very set that would be made.

    SpgError if there is something in the folder that is not of a set of this kind.

    Parameters
    ----------
    what, name
        The kind of set, for the errors, and the file name of its record.
    recorded
        Reads the record: whether it is of the same settings and sources, and path → SHA-256 of the
        set's files. Raises SpgError where it cannot be read.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not root.is_dir():
        raise SpgError(f"{root} is a file; a {what} is a folder. {_ADVICE}")
    try:
        same, files = recorded()
    except SpgError as error:
        raise SpgError(
            f"{root} is not empty and holds no {what} that this version reads. {_ADVICE}"
        ) from error
    known = {*files, name}
    # What would vanish with the set: files, empty folders, links to any.
    foreign = [
        below
        for path in sorted(root.rglob("*"))
        if (below := path.relative_to(root).as_posix()) not in known
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    ]
    if foreign:
        raise SpgError(f"{root} holds what is not of the {what}: {listed(foreign)}. {_ADVICE}")
    if not same:
        return False
    try:
        digests = file_digests(root, ".")
    except OSError:  # a file that cannot be read is made again
        return False
    return {path: sha256 for path, sha256 in digests.items() if path != name} == files


def save_image(levels: "np.ndarray", path: Path) -> None:
    """Write (H, W) uint8 or uint16, or (H, W, 3) uint8, without loss unless it is a `.JPG`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".JPG":
        Image.fromarray(levels).save(path, quality=95, subsampling=0)
    else:
        Image.fromarray(levels).save(path, compress_level=1)
