"""A gallery: every image of a set with its map, a histogram of their scores, a page for each image.

A folder that opens from its file, without a network:

    index.html       histogram, threshold, counts, filters, all images; without scripts the images
    report.css, report.js
    images/<stem>.html, .jpg (photograph), -map.png, -mask.png

The pictures are written first, by `draw` of `spg_pipe.report.pictures`, in any thread and order;
then `write_gallery` makes the pages. It serves a direction of the report, with labels, and the
images of `predict`, without.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from spg_pipe.report.page import ASSETS, environment
from spg_pipe.report.pictures import Pictures

IMAGES = "images"
"""The folder of the images' pictures and pages, beside index.html."""
Label = Literal["normal", "anomalous", "unknown"]


@dataclass(frozen=True)
class Threshold:
    """Above it a score of a group is anomalous (`metrics.operating.above`)."""

    value: float
    says: str
    """Where it comes from: "calibration (conformal, at most 5 % false alarms)", "F1-max of …"."""


@dataclass(frozen=True)
class GalleryImage:
    """One image of a gallery."""

    name: str
    """Its path, as a person knows it."""
    group: str
    """Category or camera, which may have a threshold of its own; "" if there are none."""
    defect: str
    """Kind of defect; "" if there is none or none is known."""
    label: Label
    score: float
    """Finite."""
    pictures: Pictures
    size: tuple[int, int]
    """(height, width) of the original, pixels."""
    facts: Sequence[tuple[str, str]] = ()
    """More rows for its page: what it is, and its value in words."""
    why: Markup = field(default_factory=Markup)
    """More of its page, as HTML that is escaped already; links in it are as from images/."""


@dataclass(frozen=True)
class Gallery:
    """What a gallery's pages say besides their images."""

    title: str
    """Of the page, as "demo-mvtec → demo-visa"."""
    thresholds: Mapping[str, Threshold]
    """Group → its threshold; a group without one starts above all scores."""
    low: str = "0"
    """What black stands for in a map, in words …"""
    high: str = "1"
    """… and yellow."""
    notes: Sequence[str] = ()
    """Sentences below the title."""
    back: tuple[str, str] | None = None
    """Address, as from index.html, and name of a page above."""


def write_gallery(folder: Path, gallery: Gallery, images: Iterable[GalleryImage]) -> Path:
    """Write the pages of a gallery into `folder`, whose images/ holds the pictures already.

    Parameters
    ----------
    images : iterable of GalleryImage
        In the order of their pages; a page leads to the one before and after. Only these rows are
        held in memory.

    Returns
    -------
    Path
        `folder`/index.html
    """
    raise NotImplementedError
