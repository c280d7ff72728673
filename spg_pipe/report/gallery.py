"""A gallery: every image of a set with its map, a histogram of their scores, a page for each image.

A folder that opens from its file, without a network:

    index.html       histogram, threshold, counts, filters, all images; without scripts the images
    report.css, report.js
    images/<stem>.html, .jpg (photograph), -map.png, -mask.png

The pictures are written first, by `write_pictures`, in any thread and order; then `write_gallery`
makes the pages. It serves a direction of the report, with labels, and the images of `predict`,
without.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import Environment
from markupsafe import Markup

from spg_pipe.report.page import environment, write_assets
from spg_pipe.report.pictures import ImageFiles

IMAGES = "images"
"""The folder of the images' pictures and pages, beside index.html."""
Label = Literal["normal", "anomalous", "unknown"]
VERDICTS: dict[tuple[Label, bool], str] = {
    ("anomalous", False): "missed",
    ("normal", True): "false alarm",
    ("anomalous", True): "found",
    ("normal", False): "passed",
    ("unknown", True): "anomalous",
    ("unknown", False): "normal",
}
"""Label, and whether the score is above the threshold → what that is called."""
UNDECIDED = {True: "above", False: "not above"}
"""The same where no threshold was set."""


@dataclass(frozen=True)
class Threshold:
    """Above it a score of a group is anomalous (`metrics.operating.above`)."""

    value: float
    says: str
    """Where it comes from: "a calibration, …", "F1-max of …"."""
    decides: bool = True
    """False: the page has to start somewhere."""


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
    files: ImageFiles
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
    """Group → its threshold; a group without one starts at its highest score."""
    low: str = "0"
    """What black stands for in a map, in words …"""
    high: str = "1"
    """… and yellow."""
    notes: Sequence[str] = ()
    """Sentences below the title."""
    back: tuple[str, str] | None = None
    """Address, as from index.html, and name of a page above."""
    outlined: str = "masks"
    """What the white lines surround."""
    before: Markup = field(default_factory=Markup)
    """More of the page before the histogram, as HTML that is escaped already."""
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Group → scores that count, of images without a label that are not shown."""
    normals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Group → scores of normal images that were calibrated on; the histogram shows them."""


def write_gallery(folder: Path, gallery: Gallery, images: Iterable[GalleryImage]) -> Path:
    """Write the pages of a gallery into `folder`, whose images/ holds the pictures already.

    Parameters
    ----------
    images : iterable of GalleryImage
        In any order. They are shown, and their pages lead to one another, in that of how far their
        scores are above the threshold. Only these rows are held in memory.

    Returns
    -------
    Path
        `folder`/index.html
    """
    shown = list(images)
    starts = starting_thresholds(gallery, shown)
    shown.sort(key=lambda image: starts[image.group].value - image.score)
    write_assets(folder)
    made = environment()
    made.globals |= {
        "gallery": gallery,
        "starts": starts,
        "verdict": verdict,
        "apart": apart,
        "images": shown,
    }
    _write_images(made, folder / IMAGES, shown)
    defects = sorted({image.defect for image in shown if image.defect})
    verdicts = Counter(verdict(image.label, image.score, starts[image.group]) for image in shown)
    verdicts.update(
        verdict("unknown", score, starts[group])
        for group, scores in gallery.others.items()
        for score in scores
    )
    page = made.get_template("gallery.html.jinja").render(
        groups={name: number for number, name in enumerate(starts)},
        sizes=Counter(image.group for image in shown)
        + Counter({group: len(scores) for group, scores in gallery.others.items()}),
        decides=all(start.decides for start in starts.values()),
        defects={name: number for number, name in enumerate(defects)},
        verdicts=verdicts,
        rates=rates(verdicts),
        labelled=any(image.label != "unknown" for image in shown),
        unlabelled=any(image.label == "unknown" for image in shown),
        masks=any(image.files.mask for image in shown),
    )
    (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return folder / "index.html"


def starting_thresholds(gallery: Gallery, images: Sequence[GalleryImage]) -> dict[str, Threshold]:
    """Group → the threshold that the page starts with, sorted by name."""
    highest: dict[str, float] = {}
    for image in images:
        highest[image.group] = max(image.score, highest.get(image.group, -math.inf))
    for group, scores in gallery.others.items():
        highest[group] = max([*scores, highest.get(group, -math.inf)])
    if not gallery.thresholds:  # one scale for all
        highest = dict.fromkeys(highest, max(highest.values(), default=0.0))
    none = "no threshold was set: this is the highest score"
    return {
        name: gallery.thresholds.get(name, Threshold(top, none, decides=False))
        for name, top in sorted(highest.items())
    }


def verdict(label: Label, score: float, threshold: Threshold) -> str:
    """What an image is at a threshold, in the words of `VERDICTS` or `UNDECIDED`."""
    above = score > threshold.value
    return VERDICTS[label, above] if threshold.decides else UNDECIDED[above]


def apart(score: float, threshold: float) -> list[str]:
    """Both with four digits after the point or, where they would read the same, with all."""
    texts = [f"{value:.4f}" for value in (score, threshold)]
    if texts[0] == texts[1] and score != threshold:
        texts = [repr(float(value)) for value in (score, threshold)]
    return [text.replace("-", "−") for text in texts]


def rates(verdicts: Mapping[str, int]) -> dict[str, float]:
    """Precision, recall and false-alarm rate of counted verdicts; NaN of nothing."""
    hits, missed, alarms, passed = (
        verdicts.get(name, 0) for name in ("found", "missed", "false alarm", "passed")
    )
    pairs = {
        "precision": (hits, hits + alarms),
        "recall": (hits, hits + missed),
        "fpr": (alarms, alarms + passed),
    }
    return {name: part / all_ if all_ else math.nan for name, (part, all_) in pairs.items()}


def _write_images(made: Environment, folder: Path, images: Sequence[GalleryImage]) -> None:
    template = made.get_template("image.html.jinja")
    for number, image in enumerate(images):
        page = template.render(
            image=image,
            number=number,
            before=images[number - 1] if number else None,
            after=images[number + 1] if number + 1 < len(images) else None,
        )
        path = folder / f"{image.files.stem}.html"
        path.write_text(page, encoding="utf-8", newline="\n")
