"""What is to be judged: images of folders, files, globs and lists, or of standard input."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from spg_pipe.datasets.masks import mask_notes, sort_masks
from spg_pipe.datasets.walk import PICTURES, walk
from spg_pipe.errors import SpgError, counted, listed, printable
from spg_pipe.images.files import IMAGE_EXTENSIONS, is_image, read_file, utf8_name
from spg_pipe.images.reading import read_header, read_image
from spg_pipe.predict.view import Viewing

STDIN = "-"
"""Stands for paths on standard input, one a line."""
_BLOCK = 65_536
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
Content = bytes | memoryview


@dataclass(frozen=True)
class Reading:
    """How files become pixels; see `read_image`."""

    exif: bool = True
    white: int | None = None
    strict_white: bool = False
    """The images come one by one, so that no set tells their white: 16 bits that do not say which
    value is white are an error."""
    viewing: Viewing = field(default_factory=Viewing)
    """How they are shown to the backbone, and what of them is ignored."""


@dataclass(frozen=True)
class Item:
    """One image to be judged."""

    name: str
    """As results show it, unique in a run."""
    source: Path | bytes | np.ndarray = field(repr=False, compare=False)
    """Its file, a file's bytes, or what has none: a frame (H, W, 3) uint8."""
    group: str = ""
    """The camera or category that thresholds and masks of ignored regions go by: the first folder
    of its name; empty where there is none."""

    @property
    def path(self) -> Path | None:
        """Of its file, if it has one."""
        return self.source if isinstance(self.source, Path) else None

    def content(self) -> Content:
        """What identifies it: the bytes of its file or frame.

        An `SpgError` if the file cannot be read, or its name is not UTF-8.
        """
        if isinstance(self.source, np.ndarray):
            return np.ascontiguousarray(self.source).data
        if isinstance(self.source, bytes):
            return self.source
        utf8_name(str(self.source))
        return read_file(self.source, "image")

    def pixels(self, content: Content, how: Reading) -> np.ndarray:
        """(H, W, 3) uint8 or uint16 of its `content`; an `SpgError` as of `read_image`."""
        if isinstance(self.source, np.ndarray):
            return self.source
        data, file = bytes(content), self.path or Path(self.name)
        if how.strict_white and how.white is None:
            header = read_header(file, "image", exif=how.exif, content=data)
            if header.peak is not None:
                raise SpgError(
                    f"The image {file} has 16 bits and does not say which value is white, "
                    "and images that come one by one cannot tell it together. Save them with white "
                    "at 65535 and the PNG chunk sBIT, or give `predict` their folder (in Python an "
                    "array whose white is 65535)."
                )
        return read_image(file, exif=how.exif, white=how.white, content=data)


def sha256_of(content: Content) -> str:
    """The identity of an image's content."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Items:
    """The images of a run."""

    said: str
    """What was given, for messages."""
    listed: tuple[Item, ...] = ()
    """All of them, where they are known before the first is judged."""
    coming: Iterable[Item] | None = None
    """Otherwise: as they arrive."""
    notes: tuple[str, ...] = ()
    """What was left out, and what could be masks."""

    @property
    def live(self) -> bool:
        """Whether images arrive one by one, each to be judged at once."""
        return self.coming is not None

    @property
    def count(self) -> int | None:
        """How many there are; None while that is not known."""
        return None if self.live else len(self.listed)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.listed if self.coming is None else self.coming)


def find_items(sources: Sequence[str], out: Path, stdin: BinaryIO | None = None) -> Items:
    """The images that arguments stand for.

    Of folders sorted, without masks. Names are relative to the folder that was given, or to the
    deepest one that all of several arguments are in.

    Parameters
    ----------
    sources : sequence of str
        Images, folders, globs (where a file has not that very name), `@FILE` with one of these a
        line, or `-` alone.
    out : Path
        The output folder. Its folders of pictures hold no images to be judged.
    stdin : binary stream
        Where `-` reads from.

    Raises
    ------
    SpgError
        If sources have no image, or a result would be written among the images of a folder.
    OSError
        If a folder or a list cannot be read.
    """
    if not sources:
        return Items("no images")
    notes: list[str] = []
    given = list(_expanded(sources, notes))
    if not given:
        raise SpgError(f"{listed(sources)} is empty: write an image or a folder on each line.")
    if STDIN in given:
        if len(given) > 1:
            raise SpgError("- reads paths from standard input: give it alone.")
        stream = stdin or open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115  # fd 0 stays
        return Items("standard input", coming=_arriving(stream), notes=tuple(notes))
    said = given[0] if len(given) == 1 else f"{given[0]} and {counted(len(given) - 1, 'other')}"
    paths: dict[Path, None] = {}
    for argument in given:
        found, said_of_it = _images_of(Path(argument), out)
        paths |= dict.fromkeys(found)
        notes += said_of_it
    earlier = [path for path in paths if _is_below(path, [out / folder for folder in PICTURES])]
    root = _root_of([Path(argument) for argument in given])
    items = [_item(path, root) for path in paths if path not in set(earlier)]
    if not items:
        mine = f"; {counted(len(earlier), 'picture')} of an earlier run in {out}" if earlier else ""
        raise SpgError(
            f"{said} has no images (looked for {' '.join(sorted(IMAGE_EXTENSIONS))})"
            f"{'; '.join(['', *notes])}{mine}. Give the folder that has your images; if it was "
            "left out here, name it itself."
        )
    return Items(said, tuple(items), notes=tuple(dict.fromkeys(notes)))


def _expanded(sources: Sequence[str], notes: list[str]) -> Iterator[str]:
    """Arguments with lists and globs opened; an empty list is noted."""
    for source in sources:
        if not source.strip():
            raise SpgError("A name of an image or folder is empty: write . for this folder.")
        if source.startswith("@"):
            lines = _lines_of(Path(source[1:]))
            notes += [] if lines else [f"{source} is empty"]
            yield from _expanded(lines, notes)
        elif glob.has_magic(source) and not Path(source).exists():
            found = sorted(glob.glob(source, recursive=True))  # noqa: PTH207  # absolute ones, too
            if not found:
                raise SpgError(f"{source} fits no file. Quote it, and try it with `ls`.")
            yield from (_literal(name) for name in found)
        else:
            yield source


def _lines_of(file: Path) -> list[str]:
    """What a list names, one a line; `@` and `-` are no signs there."""
    content, block = bytearray(), b"\n"
    with file.open("rb") as stream:
        while block and b"\0" not in block:  # of a device without an end, the first block
            content += (block := stream.read(_BLOCK))
    if b"\0" in block:
        raise SpgError(
            f"{file} is no list: expected UTF-8 text, an image, folder or glob on each line."
        )
    text = os.fsdecode(bytes(content).removeprefix(_BYTE_ORDER_MARK))
    return [_literal(line.removesuffix("\r")) for line in text.split("\n") if line.strip()]


def _literal(name: str) -> str:
    """A name in which `@` and `-` are no signs."""
    return f"./{name}" if name[0] in (STDIN, "@") else name


def _images_of(source: Path, out: Path) -> tuple[list[Path], list[str]]:
    """The images that a file or folder stands for, and notes."""
    if source.is_dir():
        if source.resolve().is_relative_to(out.resolve()):
            raise SpgError(f"--out {out} holds the images themselves. Choose a folder of its own.")
        walked = walk(source)
        sorting = sort_masks(source, walked.images)
        left_out = mask_notes(source, sorting.masks, sorting.masks, "left out, ")
        return sorting.images, left_out + sorting.doubts + walked.notes(source)
    if source.is_file() or is_image(source):  # one that is gone is a bad file, not a wrong call
        return [source], []
    fault = "is a pipe or a device" if source.exists() else "does not exist"
    lists = "@LIST or -; within a list the first three"
    raise SpgError(f"{source} {fault}. Give images, folders, a glob, {lists}.")


def _root_of(given: Sequence[Path]) -> Path:
    """The folder that names are relative to."""
    if len(given) == 1 and given[0].is_dir():
        return given[0]
    return Path(os.path.commonpath([_absolute(path.parent) for path in given]))


def _absolute(path: Path) -> Path:
    """Without `..`, by the names alone: a link keeps its own name."""
    return Path(os.path.normpath(path.absolute()))


def _item(path: Path, root: Path) -> Item:
    below = path if path.is_relative_to(root) else _absolute(path)
    name = below.relative_to(root).as_posix()
    return Item(_shown(name), path, _shown(name.partition("/")[0]) if "/" in name else "")


def _shown(name: str) -> str:
    """A name as UTF-8; one whose bytes are no UTF-8, or a NUL, with these written out."""
    try:
        return utf8_name(name) if "\0" not in name else printable(name)
    except SpgError:
        return printable(name)


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    real = path.resolve()
    return any(real.is_relative_to(folder.resolve()) for folder in folders)


def _arriving(stream: BinaryIO) -> Iterator[Item]:
    """Images by the lines of a stream, each as soon as it is there; a name again gets a number."""
    seen: dict[str, int] = {}
    rest = b""
    while True:
        # Not `readline`: a thread that waits there keeps the interpreter from ending.
        block = stream.read(_BLOCK) if stream.seekable() else os.read(stream.fileno(), _BLOCK)
        *lines, rest = (rest + block).split(b"\n")
        for line in [*lines, *([] if block else [rest])]:
            path = line.removesuffix(b"\r").removeprefix(_BYTE_ORDER_MARK)
            if not (text := os.fsdecode(path)).strip():
                continue
            seen[text] = seen.get(text, 0) + 1
            name = text if seen[text] == 1 else f"{text}#{seen[text]}"
            yield Item(_shown(name), Path(text), _shown(Path(text).parent.name))
        if not block:
            return
