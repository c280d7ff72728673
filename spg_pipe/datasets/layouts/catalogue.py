"""The known layouts: how a folder must look, and which scanner reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spg_pipe.datasets.layouts.folder import scan_folder
from spg_pipe.datasets.layouts.listing import Scan, Select
from spg_pipe.datasets.layouts.mvtec import scan_mvtec
from spg_pipe.datasets.layouts.synthetic import scan_synthetic
from spg_pipe.datasets.layouts.visa import scan_visa


@dataclass(frozen=True)
class LayoutInfo:
    """A layout, described for people."""

    name: str
    """What `layout:` takes."""
    summary: str
    """One sentence."""
    sketch: str
    """The folders, several lines."""
    own_images: bool
    """For a person's own images, not a benchmark's: their EXIF orientation may count."""


@dataclass(frozen=True)
class Layout:
    """A layout and its scanner."""

    info: LayoutInfo
    scan: Callable[[Path, str, Select], Scan]


_MVTEC = LayoutInfo(
    "mvtec",
    "MVTec AD's official folders, for any category names; every defect image has a mask of its "
    "name.",
    """\
ROOT/<category>/train/good/000.png
ROOT/<category>/test/good/000.png
ROOT/<category>/test/<defect>/000.png
ROOT/<category>/ground_truth/<defect>/000_mask.png""",
    own_images=False,
)

_VISA = LayoutInfo(
    "visa",
    "VisA's official folders; the split file names splits and masks.",
    """\
ROOT/split_csv/1cls.csv                      (object,split,label,image,mask)
ROOT/<category>/Data/Images/Normal/0000.JPG
ROOT/<category>/Data/Images/Anomaly/000.JPG
ROOT/<category>/Data/Masks/Anomaly/000.png""",
    own_images=False,
)

_FOLDER = LayoutInfo(
    "folder",
    "Your own images: good/ and one folder for each defect, masks optional; or just images "
    "without labels, at any depth.",
    """\
ROOT/*.jpg                                   (no labels)
ROOT/good/*.jpg
ROOT/<defect>/*.jpg
ROOT/ground_truth/<defect>/<stem>_mask.png   (optional; or masks/<defect>/)
ROOT/<defect>/<stem>_mask.png                (or beside the image)""",
    own_images=True,
)

_SYNTHETIC = LayoutInfo(
    "synthetic",
    "What `spg-pipe synthesise` makes of normal images: copies with painted defects and masks.",
    """\
ROOT/synthetic.json                          (names every image)
ROOT/images/<category>/good/00000.png
ROOT/images/<category>/<kind>/00000-0.png
ROOT/masks/<category>/<kind>/00000-0.png""",
    own_images=False,
)

LAYOUTS = {
    "mvtec": Layout(_MVTEC, scan_mvtec),
    "visa": Layout(_VISA, scan_visa),
    "folder": Layout(_FOLDER, scan_folder),
    "synthetic": Layout(_SYNTHETIC, scan_synthetic),
}


def honours_exif(layout: str, exif_of_own_images: bool) -> bool:
    """Whether images of a layout are turned as their EXIF says (docs/method.md §5).

    Parameters
    ----------
    layout
        A known layout's name.
    exif_of_own_images
        The protocol's setting.
    """
    return LAYOUTS[layout].info.own_images and exif_of_own_images


def describe_layouts() -> list[LayoutInfo]:
    """The known layouts, each with a sketch of its folders."""
    return [layout.info for layout in LAYOUTS.values()]
