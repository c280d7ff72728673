"""Walking a folder of images: which files in it count, and why the others do not, whoever asks.

Names only, no pixels. Nothing is left out without a reason, so that every caller can tell it.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from spg_pipe.datasets.annotations import annotation_format
from spg_pipe.errors import counted, listed

# A fixed list: Pillow's own registry depends on the build and holds .pdf, .mpg and other
# files that it can write or recognise but not decode.
_EXTENSIONS = """
    apng avif bmp bw cur dcx dds dib fit fits flc fli gif icns ico im j2k jfif jp2 jpe jpeg
    jpf jpg jpx msp pbm pcx pfm pgm png pnm ppm psd qoi ras rgb rgba sgi tga tif tiff webp
    xbm xpm
"""
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _EXTENSIONS.split())
"""What counts as an image file, in lower case."""
SCORES, OVERLAYS = "scores.csv", "overlays"
SCORES_HEADER = "path,score,height,width,peak_row,peak_column,overlay,protocol"
"""What a result of `predict` holds, and what the first line of its scores begins with."""
SYNTHETIC_RECORD = "synthetic.json"
"""What makes a folder a synthetic set."""
# Thumbnails of Synology and Windows, archives of macOS, recycle bins.
_TOOL_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "recycler", "lost+found"}
    | {"system volume information", "__pycache__", "thumbnails", "thumbs"}
)
_VISITS = 16
"""Of one folder by way of links, at most: links to links would multiply without end."""


class Reason(Enum):
    """Why a path is left out: what it is called, and what is said of it."""

    NO_IMAGE = "file", "not an image file"
    NO_PICTURE = "file", "coordinates, not a picture"
    HIDDEN_FILE = "image", "hidden"
    HIDDEN_FOLDER = "folder", "hidden"
    TOOL = "folder", "made by a tool, not of images that were taken"
    HEAT_MAPS = "folder", "heat maps of an earlier predict"
    SYNTHETIC = "folder", "a synthetic set of its own"
    NOWHERE = "link", "leads nowhere"
    CIRCLE = "link", "to a folder that it lies in, or that many links lead to"
    SPECIAL = "entry", "neither a file nor a folder"


@dataclass(frozen=True)
class Walk:
    """What lies in a folder and the folders below it. All paths begin with the folder's."""

    folder: Path
    images: list[Path]
    """Image files by their names, sorted."""
    left_out: Mapping[Reason, Sequence[Path]]
    """Everything else but folders that were looked into, sorted; no reason without paths."""

    def notes(self, root: Path, *, documents: Path | None = None) -> list[str]:
        """One line a reason: how many were left out, and some of their names, from `root` on.

        A licence or a readme in the folder `documents` is no news.
        """
        lines = []
        for reason in Reason:
            noun, what = reason.value
            groups: dict[str, list[str]] = defaultdict(list)
            for path in self.left_out.get(reason, ()):
                if path.parent == documents:
                    continue
                kind = annotation_format(path) if reason is Reason.NO_IMAGE else None
                why = f"{kind} annotations are not read, export masks as PNG" if kind else what
                groups[why].append(readable(relative(path, root)))
            lines += [
                f"{counted(len(names), noun)} left out, {why}: {listed(names, 3)}"
                for why, names in groups.items()
            ]
        return lines


def walk(folder: Path, skip: Collection[Path] = ()) -> Walk:
    """Look through a folder and the visible folders below it; nothing if it is missing.

    Links are followed, but not into a folder that they are in. OSError if a folder cannot be read.

    Parameters
    ----------
    skip
        Folders that are not asked for: not looked into, and not told of.
    """
    images: list[Path] = []
    left_out: dict[Reason, list[Path]] = defaultdict(list)
    visits: Counter[Path] = Counter()
    waiting: list[tuple[Path, frozenset[Path]]] = [(folder, frozenset())]
    while waiting:
        here, above = waiting.pop()
        if not here.is_dir():
            continue
        above |= {here.resolve()}
        for path in sorted(here.iterdir()):
            if path.is_file():
                reason = _why_not_file(path)
                if reason is None:
                    images.append(path)
            elif path.is_dir():
                real = path.resolve()
                visits[real] += 1
                circle = real in above or visits[real] > _VISITS
                reason = Reason.CIRCLE if circle else _why_not_folder(path)
                if reason is None and path not in skip:
                    waiting.append((path, above))
            else:
                reason = Reason.NOWHERE if path.is_symlink() else Reason.SPECIAL
            if reason:
                left_out[reason].append(path)
    return Walk(folder, sorted(images), {reason: sorted(left_out[reason]) for reason in left_out})


def _why_not_file(path: Path) -> Reason | None:
    if path.suffix.lower() not in IMAGE_EXTENSIONS:
        return Reason.NO_IMAGE
    if path.parent.name.lower() == "xyz":  # of MVTec 3D-AD: TIFF with three floats a point
        return Reason.NO_PICTURE
    return Reason.HIDDEN_FILE if path.name.startswith(".") else None


def _why_not_folder(path: Path) -> Reason | None:
    if path.name.startswith("."):
        return Reason.HIDDEN_FOLDER
    if path.name.lower() in _TOOL_FOLDERS:
        return Reason.TOOL
    if path.name == OVERLAYS and is_result(path.parent):
        return Reason.HEAT_MAPS
    return Reason.SYNTHETIC if (path / SYNTHETIC_RECORD).is_file() else None


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file (by extension; hidden files are not)."""
    return _why_not_file(path) is None


def is_result(folder: Path) -> bool:
    """Whether a folder holds what `predict` writes, by the first line of its scores."""
    scores = folder / SCORES
    if not scores.is_file():
        return False
    with scores.open("rb") as stream:
        return stream.read(len(SCORES_HEADER)) == SCORES_HEADER.encode()


def subfolders(folder: Path) -> list[Path]:
    """Folders in `folder` that `walk` looks into, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _why_not_folder(p))


def mask_files(mask: Path) -> list[Path]:
    """The files of a mask, sorted: the mask itself, or those of its folder."""
    return sorted(filter(is_image, mask.iterdir())) if mask.is_dir() else [mask]


def relative(path: Path, root: Path) -> str:
    """A path as manifests write it: below the root, with `/` between folders."""
    return path.relative_to(root).as_posix()


def readable(name: str) -> str:
    """A name as text that can be shown and stored, whatever its bytes are."""
    return name.encode(errors="replace").decode()


def inside(path: str) -> str:
    """The path, if it stays below the dataset's folder; else ValueError."""
    if PurePosixPath(path).is_absolute() or ".." in path.split("/"):
        raise ValueError(f"{path} is outside the dataset's folder")
    return path


Inside = Annotated[str, AfterValidator(inside)]
"""A relative path in a file that anybody may have written: below the dataset's folder, or empty."""
