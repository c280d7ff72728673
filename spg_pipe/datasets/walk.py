"""Walking a folder of images: what counts as an image file, which folders are looked into.

Names only, no pixels.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from spg_pipe.errors import SpgError, printable

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


def subfolders(folder: Path) -> list[Path]:
    """Visible folders in `folder`, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and other files in `folder` and its visible subfolders, sorted; none if it is missing.

    Links are followed, but not into a folder that they are in. OSError if a folder cannot be read.
    """
    images: list[Path] = []
    others: list[Path] = []
    waiting: list[tuple[Path, frozenset[Path]]] = [(folder, frozenset())]
    while waiting:
        here, above = waiting.pop()
        if (real := here.resolve()) in above or not here.is_dir():
            continue
        for path in here.iterdir():
            if path.is_file():
                (images if is_image(path) else others).append(path)
            elif path.is_dir() and not path.name.startswith("."):
                waiting.append((path, above | {real}))
    return sorted(images), sorted(others)


def mask_files(mask: Path) -> list[Path]:
    """The files of a mask, sorted: the mask itself, or those of its folder."""
    if not mask.is_dir():
        return [mask]
    return sorted(path for path in mask.iterdir() if is_image(path) and path.is_file())


def relative(path: Path, root: Path) -> str:
    """A path as manifests write it: below the root, with `/` between folders."""
    return path.relative_to(root).as_posix()


def utf8_name(path: str) -> str:
    """A file's name or path as its bytes say in UTF-8, whatever the locale.

    An `SpgError` names one that is not UTF-8.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeError:
        raise SpgError(
            f"The file name '{printable(path)}' is not valid UTF-8. Rename the file."
        ) from None


def inside(path: str) -> str:
    """The path, if it stays below the dataset's folder; else ValueError."""
    if PurePosixPath(path).is_absolute() or ".." in path.split("/"):
        raise ValueError(f"{path} is outside the dataset's folder")
    return path


Inside = Annotated[str, AfterValidator(inside)]
"""A relative path in a file that anybody may have written: below the dataset's folder, or empty."""
