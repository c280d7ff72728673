"""Files of images and masks: their names, bytes and identity."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.errors import SpgError, printable
from spg_pipe.images.annotations import annotated, mask_content

# A fixed list: Pillow's own registry depends on the build and holds .pdf, .mpg and other
# files that it can write or recognise but not decode.
_EXTENSIONS = """
    apng avif bmp bw dcx dds dib fit fits flc fli gif im j2k jfif jp2 jpe jpeg
    jpf jpg jpx msp pbm pcx pfm pgm png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp
    xbm xpm
"""
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _EXTENSIONS.split())
"""What counts as an image file, in lower case."""


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file (by extension; hidden files are not)."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def mask_files(mask: Path) -> list[Path]:
    """The files of a mask, sorted: the mask itself, or those of its folder."""
    if not mask.is_dir():
        return [mask]
    return sorted(path for path in mask.iterdir() if is_image(path) and path.is_file())


def read_file(path: Path, what: str) -> bytes:
    """The bytes of an image or a mask. SpgError, which blames no content, if they cannot be had.

    Of a mask that an annotation file draws, what it says of it.
    """
    if drawn := annotated(path):
        return mask_content(*drawn)
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():
            raise SpgError(f"The {what} {path} is a pipe or a device. Name a file.")
        return path.read_bytes()
    except FileNotFoundError:
        raise SpgError(
            f"The {what} {path} does not exist. Give its place; of a dataset that moved, run "
            "`spg-pipe prepare` again."
        ) from None
    except ValueError as error:
        raise SpgError(
            f"The {what} {printable(str(path))} cannot be a file: no file has such a name "
            f"({error}). Give names of files, in a list one on each line."
        ) from None
    except OSError as error:
        raise SpgError(
            f"The {what} {path} cannot be opened ({error.strerror or error}). Check its "
            f"permissions and whether its disk is there, then run the command again."
        ) from error


def sha256_of(path: Path, digests: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of an image or a mask from those of its files, by name: its own, or of several."""
    return digests[0][1] if path.is_file() else fingerprint(digests)


def sha256_now(path: Path, what: str) -> str:
    """The same, read anew. SpgError as of `read_file`."""
    contents = [(file.name, read_file(file, what)) for file in mask_files(path)]
    return sha256_of(path, [(name, hashlib.sha256(data).hexdigest()) for name, data in contents])


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
