"""Walking a folder of images: what counts as an image file, which folders are looked into.

Names only, no pixels.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

# A fixed list: Pillow's own registry depends on the build and holds .pdf, .mpg and other
# files that it can write or recognise but not decode.
_EXTENSIONS = """
    apng avif bmp bw cur dcx dds dib fit fits flc fli gif icns ico im j2k jfif jp2 jpe jpeg
    jpf jpg jpx msp pbm pcx pfm pgm png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp
    xbm xpm
"""
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _EXTENSIONS.split())
"""What counts as an image file, in lower case."""


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file (by extension; hidden files are not)."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


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


def files_below(folder: Path) -> Files:
    """Files in `folder` and its visible subfolders; links are followed, never round in a circle."""
    images, others = [], 0
    seen: set[str] = set()
    for where, names, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(n for n in names if not n.startswith("."))
        here = files_in(Path(where))
        images += here.images
        others += here.others
    return Files(sorted(images), others)


def relative(path: Path, root: Path) -> str:
    """A path as manifests write it: below the root, with `/` between folders."""
    return path.relative_to(root).as_posix()


def inside(path: str) -> str:
    """The path, if it stays below the dataset's folder; else ValueError."""
    if PurePosixPath(path).is_absolute() or ".." in path.split("/"):
        raise ValueError(f"{path} is outside the dataset's folder")
    return path


Inside = Annotated[str, AfterValidator(inside)]
"""A relative path in a file that anybody may have written: below the dataset's folder, or empty."""
