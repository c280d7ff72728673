"""From the scores of one group of images to its limits, and what is promised of them in words."""

from dataclasses import dataclass, field

import numpy as np

from spg_pipe.decision.calibration import Limits, Method, Threshold, by_hand
from spg_pipe.decision.thresholds import (
    conformal_threshold,
    f1_threshold,
    groups_of,
    recall_threshold,
    tolerance_threshold,
)
from spg_pipe.errors import UnsuitableError, counted
from spg_pipe.metrics import HistogramAccumulator
from spg_pipe.metrics.curves import Groups
from spg_pipe.metrics.operating import above


@dataclass(frozen=True)
class Asked:
    """The method, and what it is to keep."""

    method: Method = "conformal"
    false_alarms: float = 0.05
    confidence: float = 0.95
    recall: float = 0.95
    threshold: float | None = None
    """Of the method `manual`, as the next."""
    pixel_threshold: float | None = None

    def __post_init__(self) -> None:
        by_hand(self.threshold, self.pixel_threshold)  # refuses what is no number

    @property
    def from_normals(self) -> bool:
        """Whether it takes normal images alone."""
        return self.method in ("conformal", "tolerance")

    @property
    def from_labels(self) -> bool:
        """Whether it needs images with defects, too."""
        return self.method in ("f1-max", "recall")


@dataclass
class GroupScores:
    """What the images of one group were given, one after the other."""

    normal: list[float] = field(default_factory=list)
    """Scores of n normal images."""
    tops: list[np.float32] = field(default_factory=list)
    """The highest value of each normal image's map."""
    anomalous: list[float] = field(default_factory=list)
    """Scores of images with a defect."""
    pixels: HistogramAccumulator = field(default_factory=HistogramAccumulator)
    """The map's values in normal images and in those with a mask, if pixels are asked for."""
    left_out: bool = False
    """Normal images are those of a bank, each judged without itself; they have no `tops`."""


def limits_of(scores: GroupScores, asked: Asked) -> Limits:
    """The limits of a group by the method that was asked for.

    An `UnsuitableError` if its images are too few, or of one kind where both are needed.
    """
    image: Threshold | None
    pixel: Threshold | None = None
    normal, tops = np.array(scores.normal), np.array(scores.tops, np.float32)
    if asked.from_normals:
        image = _of_normals(normal, asked, "scores", "score", left_out=scores.left_out)
        if not scores.left_out:
            pixel = _of_normals(tops, asked, "has a pixel", "have a pixel")
    elif asked.method == "manual":
        image = _by_hand(normal, asked.threshold, "score")
        pixel = _by_hand(tops, asked.pixel_threshold, "have a pixel")
    elif len(scores.anomalous) == 0 or len(normal) == 0:
        raise UnsuitableError(
            f"{counted(len(normal), 'normal image')} and {len(scores.anomalous)} with a "
            f"defect: the method {asked.method} needs both, in good/ and a folder for each defect."
        )
    else:
        image = _of_labelled(groups_of(normal, np.array(scores.anomalous)), asked, "image")
        if scores.pixels.counts.anomalous_pixels:
            pixels = scores.pixels.groups()
            pixel = None if pixels.one_class else _of_labelled(pixels, asked, "pixel")
    ascending = tuple(np.sort(normal).tolist())
    return Limits(image=image, pixel=pixel, scores=ascending, anomalous=len(scores.anomalous))


def _of_normals(
    values: np.ndarray, asked: Asked, one: str, many: str, *, left_out: bool = False
) -> Threshold:
    rate, images = asked.false_alarms, counted(len(values), "normal image")
    if left_out:
        return Threshold(
            value=conformal_threshold(values, rate),
            says=f"About {rate:g} of normal images {many} above it, to judge by {images} of the "
            "bank, each left out once (jackknife). Nothing is promised: for that, calibrate on "
            "others.",
        )
    if asked.method == "conformal":
        return Threshold(
            value=conformal_threshold(values, rate),
            says=f"A new normal image {one} above it with a probability of at most {rate:g}, over "
            f"the draw of it and of {images}, if they are exchangeable.",
        )
    return Threshold(
        value=tolerance_threshold(values, rate, asked.confidence),
        says=f"At most {rate:g} of all normal images {many} above it, with a probability of "
        f"{asked.confidence:g} over the draw of {images}, if they are independent.",
    )


def _by_hand(values: np.ndarray, threshold: float | None, many: str) -> Threshold | None:
    if threshold is None:
        return None
    count, images = int(above(values, threshold).sum()), counted(len(values), "normal image")
    return Threshold(value=threshold, says=f"Set by hand; {count} of {images} {many} above it.")


def _of_labelled(labelled: Groups, asked: Asked, what: str) -> Threshold:
    f1, pixels = asked.method == "f1-max", what == "pixel"
    value = (
        f1_threshold(labelled, pixels=pixels)
        if f1
        else recall_threshold(labelled, asked.recall, pixels=pixels)
    )
    aim = "The highest F1" if f1 else f"The highest threshold of recall {asked.recall:g}"
    last = int(np.flatnonzero(above(labelled.score, value))[-1])
    found, alarms = int(labelled.tp[last]), int(labelled.fp[last])
    return Threshold(
        value=value,
        says=f"{aim} on {labelled.n_normal:,} normal and {labelled.n_anomalous:,} anomalous "
        f"{what}s: precision {found / (found + alarms):.3g}, recall "
        f"{found / labelled.n_anomalous:.3g}, false alarms {alarms / labelled.n_normal:.3g}. It "
        "promises nothing of new images.",
    )
