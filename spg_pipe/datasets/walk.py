"""Walking a folder of images: which files in it count, and why the others do not, whoever asks.

Names only, no pixels. Nothing is left out without a reason, so that every caller can tell it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from spg_pipe.errors import noted
from spg_pipe.images.files import IMAGE_EXTENSIONS, is_image

PREDICTIONS, SCORES, RUN = "predictions.jsonl", "scores.csv", "run.json"
"""What `predict` writes: lines, a table, and what made them, the sign of a result."""
EXPLANATIONS, EXPLAINED = "explanations.jsonl", "explained"
"""What `explain` writes: lines, and a folder of pictures."""
OVERLAYS, MAPS, MASKS = "overlays", "maps", "masks"
REPORT = "report"
"""The page of a result, and its pictures."""
PICTURES = (OVERLAYS, MAPS, MASKS, EXPLAINED, REPORT)
"""Folders of pictures in a result."""
SYNTHETIC_RECORD = "synthetic.json"
"""What makes a folder a synthetic set."""
_RUN_HEAD = re.compile(rb'\{\s*"kind": "predictions"')
_TOOL_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found"}
    | {"system volume information", "__pycache__", "thumbnails", "thumbs"}
)
_OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl", ".dcm", ".npy", ".raw"}
)
_ANNOTATIONS = (
    (".json", rb'"shapes"\s*:', "LabelMe"),
    (".json", rb'"objects"\s*:\s*\[', "Supervisely"),
    (".json", rb'"(images|annotations|categories|licenses)"\s*:\s*\[', "COCO"),
    (".xml", rb"<annotation\b", "Pascal VOC"),
    (".xml", rb"<annotations\b", "CVAT"),
    (".txt", rb"\A\s*\d+( +-?\d*\.?\d+){4,}\s*($|[\r\n])", "YOLO"),
    (".csv", rb"EncodedPixels", "run lengths"),
)
"""Ending, what stands near the file's beginning, and the tool's format."""
_HEAD = 4096
"""Bytes of a file that tell its format."""
_VISITS = 16
"""Of one folder by way of links, at most: links to links would multiply without end."""


class Reason(Enum):
    """Why a path is left out: what it is called, and what is said of it, if not of each its own."""

    NO_IMAGE = "file", ""
    COORDINATES = "folder", "coordinates, not pictures"
    HIDDEN = "path", "hidden or of a tool"
    HEAT_MAPS = "folder", "heat maps of an earlier predict"
    SYNTHETIC = "folder", "a synthetic set of its own"
    NOWHERE = "link", "dangling"
    CIRCLE = "link", "to a folder that it lies in, or that many links lead to"
    SPECIAL = "entry", "neither a file nor a folder"


@dataclass(frozen=True)
class Walk:
    """What lies in a folder and the folders below it. All paths begin with the folder's."""

    images: list[Path]
    """Image files by their names, sorted."""
    left_out: Mapping[Reason, Sequence[Path]]
    """Everything else but folders that were looked into, sorted; no reason without paths."""

    def notes(self, root: Path, *, documents: Path | None = None) -> list[str]:
        """One line a reason: how many were left out, and some of their names, from `root` on.

        A licence or a readme in the folder `documents` is no news.
        """
        groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for reason in Reason:
            noun, what = reason.value
            for path in self.left_out.get(reason, ()):
                if reason is not Reason.NO_IMAGE or path.parent != documents:
                    groups[noun, what or _what_it_is(path)].append(path)
        return [
            note
            for (noun, what), paths in groups.items()
            for note in noted(paths, noun, f"left out, {what}", root)
        ]


def annotation_tool(file: Path) -> str:
    """Whose format a file of annotations has, by its first bytes; empty if it is none."""
    signs = [(sign, name) for of, sign, name in _ANNOTATIONS if of == file.suffix.lower()]
    head = b""
    if signs:
        with suppress(OSError), file.open("rb") as stream:  # a note or a message depends on it
            head = stream.read(_HEAD)
    return next((name for sign, name in signs if re.search(sign, head)), "")


def _what_it_is(file: Path) -> str:
    """What a note says of a file that is no image; one that cannot be read is any file."""
    if name := annotation_tool(file):
        read = "the layout coco reads" if name == "COCO" else "are not read: export masks as PNG"
        return f"{name} annotations, which {read}"
    other = file.suffix.lower() in _OTHER_PICTURES
    return "in a format that is not read: convert it to PNG" if other else "not an image file"


def walk(folder: Path, *, deep: bool = True) -> Walk:
    """Look through a folder and, if `deep`, the visible ones below it; nothing if it is missing.

    Links are followed, but not into a folder that they are in. OSError if a folder cannot be
    read.
    """
    images: list[Path] = []
    left_out: dict[Reason, list[Path]] = defaultdict(list)
    reason: Reason | None
    visits: Counter[Path] = Counter()
    waiting: list[tuple[Path, frozenset[Path]]] = [(folder, frozenset())]
    while waiting:
        here, above = waiting.pop()
        if not here.is_dir():
            continue
        above |= {here.resolve()}
        for path in sorted(here.iterdir()):
            if is_image(path) and path.is_file():
                images.append(path)
                continue
            if path.is_file():
                hidden = path.suffix.lower() in IMAGE_EXTENSIONS
                reason = Reason.HIDDEN if hidden else Reason.NO_IMAGE
            elif path.is_dir():
                real = path.resolve()
                visits[real] += 1
                circle = real in above or visits[real] > _VISITS
                reason = Reason.CIRCLE if circle else why_not_folder(path)
                if reason is None and deep:
                    waiting.append((path, above))
            else:
                reason = Reason.NOWHERE if path.is_symlink() else Reason.SPECIAL
            if reason:
                left_out[reason].append(path)
    return Walk(sorted(images), {reason: sorted(left_out[reason]) for reason in left_out})


def why_not_folder(path: Path) -> Reason | None:
    """Why `walk` does not look into a folder, by its name or what it holds; None if it does."""
    if path.name.startswith(".") or path.name.lower() in _TOOL_FOLDERS:
        return Reason.HIDDEN
    if path.name == "xyz" and (path.parent / "rgb").is_dir():  # MVTec 3D-AD
        return Reason.COORDINATES
    if path.name in PICTURES and is_result(path.parent):
        return Reason.HEAT_MAPS
    if path.name == EXPLAINED and (path.parent / EXPLANATIONS).is_file():
        return Reason.HEAT_MAPS
    return Reason.SYNTHETIC if (path / SYNTHETIC_RECORD).is_file() else None


def is_result(folder: Path) -> bool:
    """Whether a folder holds what `predict` writes, by the beginning of its run.json."""
    if not (folder / RUN).is_file():
        return False
    with (folder / RUN).open("rb") as stream:
        return _RUN_HEAD.match(stream.read(_HEAD)) is not None


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder` that `walk` looks into, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not why_not_folder(p))


def relative(path: Path, root: Path) -> str:
    """A path as manifests write it: below the root, with `/` between folders."""
    return path.relative_to(root).as_posix()
