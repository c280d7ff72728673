"""Calibration: the file with thresholds, what they were made from, and by what judged images.

It lies beside a detector, which is never edited. Docs/thresholds.md says what each method promises.
"""

import math
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from spg_pipe.artefacts.record import Count, Name, Record, Size, read_record, write_record
from spg_pipe.decision.thresholds import p_values
from spg_pipe.errors import SpgError, listed

COMMAND = "spg-pipe calibrate"

Method = Literal["conformal", "tolerance", "f1-max", "recall", "manual"]
Share = Annotated[float, Field(gt=0, lt=1)]
Decided = Literal["normal", "anomalous"]


class Judging(Record):
    """By what images were judged: scores of another judging mean something else."""

    detector: Name
    """Fingerprint."""
    tiles: tuple[Size, ...] = ()
    """Sides in pixels."""
    fit: Name = "squash"
    """How an image becomes the backbone's square."""
    bank: Name | None = None
    """Fingerprint of the bank that it was also compared with."""
    alone: bool = False
    """The bank judges without the guides."""
    ignored: Name | None = None
    """Digest of the masks of what does not count."""
    white: Count | None = None
    """Of 16-bit images whose files do not say it; None for 65535."""

    def differences(self, other: "Judging") -> list[str]:
        """In words: what is otherwise in `other`, which judges now."""
        told = {name: (getattr(self, name), getattr(other, name)) for name in Judging.model_fields}
        return [
            f"{_WORDS[name]} was {_shown(then)} and is {_shown(now)}"
            for name, (then, now) in told.items()
            if then != now
        ]


_WORDS = {
    "detector": "the detector",
    "tiles": "--tiles",
    "fit": "how an image is made square",
    "bank": "the bank of --normals",
    "alone": "--bank alone",
    "ignored": "what --ignore leaves out",
    "white": "the value of white in 16-bit images",
}


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    text = "none" if value is None else str(value)
    return text[:8] if len(text) == 64 else text


class Threshold(Record):
    """A limit; a score or a pixel of a map is anomalous above it."""

    value: float
    says: str
    """What is promised of it, or how it was set, in words."""


class Limits(Record):
    """The thresholds of one group of images."""

    image: Threshold | None
    pixel: Threshold | None
    """None: there were no masks to make one from, or none was given by hand."""
    scores: tuple[float, ...]
    """Of the normal images, ascending; empty if all was set by hand."""
    anomalous: Count
    """Labelled images with a defect that took part."""

    @model_validator(mode="after")
    def _in_order(self) -> "Limits":
        if list(self.scores) != sorted(self.scores):
            raise ValueError("the scores of the normal images are not in ascending order")
        return self

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.array(self.scores)

    @property
    def attained(self) -> float | None:
        """The highest score of a normal image that is not above the threshold; None: there is none.

        What `conformal` and `tolerance` found, to which the threshold adds some room.
        """
        if self.image is None:
            return None
        normal = self._sorted[self._sorted <= self.image.value]
        return float(normal[-1]) if len(normal) else None

    def p_value(self, score: float) -> float | None:
        """The conformal p-value of an image's score; None without normal images."""
        if not self.scores:
            return None
        return float(p_values(self._sorted, np.array([score]))[0])

    def decide(self, score: float) -> Decided | None:
        """What an image is by its score; None without a threshold of images."""
        if self.image is None:
            return None
        return "anomalous" if score > self.image.value else "normal"


class Calibration(Record):
    """calibration.json of a detector."""

    BESIDE = Record.BESIDE | {"made"}

    kind: Literal["calibration"] = "calibration"
    format: Literal[1] = 1
    judging: Judging
    method: Method
    false_alarms: Share | None
    """α: the rate that was asked for, of methods that bound it."""
    confidence: Share | None
    """1 − δ, of a tolerance bound."""
    recall: Annotated[float, Field(gt=0, le=1)] | None
    """The share of anomalous images, and pixels, that was asked for."""
    by_folder: bool
    """Each group of images has limits of its own; otherwise the one group "" is all."""
    groups: dict[Name, Limits]
    from_bank: bool = False
    """The normal images are the bank's own, each judged without itself: nothing is promised."""
    notes: tuple[str, ...]
    """What was left out, and why."""
    made: date
    valid_until: date | None
    """The last day; None: as long as the conditions hold."""
    fingerprint: Name = ""
    versions: dict[Name, Name]

    @property
    def watchable(self) -> bool:
        """Whether drift can be told: normal images are like those that are judged, and alone."""
        return self.method not in ("f1-max", "recall") and not self.from_bank

    def limits(self, group: str) -> Limits:
        """The thresholds of a group; an `SpgError` if it was not calibrated."""
        limits = self.groups.get(group if self.by_folder else "")
        if limits is None:
            raise SpgError(
                f"There is no threshold for images of the folder {group or '(none)'}: the "
                f"calibration has {listed(sorted(self.groups))}. Calibrate it too, or give the "
                "folder above these as the source."
            )
        return limits

    def require(self, judging: Judging, today: date, path: Path | str) -> None:
        """Refuse, with an `SpgError`, to be used for another judging or after its last day."""
        again = (
            f"Give the options that it was made with, make another with those of now (`{COMMAND}`; "
            "--out and --calibration name a place of its own), or decide without it "
            "(--no-calibration)."
        )
        if faults := self.judging.differences(judging):
            raise SpgError(
                f"The calibration {path} does not hold here: {'; '.join(faults)}. {again}"
            )
        if self.valid_until is not None and today > self.valid_until:
            raise SpgError(f"The calibration {path} held until {self.valid_until}. {again}")

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_record(path, self)

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Read a file that `save` wrote; an `SpgError` if it is missing or damaged."""
        return read_record(Path(path), cls, "calibration", COMMAND)


def place_beside(judges: Path) -> Path:
    """Where a calibration lies: the name of what judges and "-calibration.json".

    What judges is the folder of the bank or of the normal images, else of the detector:
    a detector may judge several products, each beside a bank of its own.
    """
    folder = judges.resolve()
    return folder.with_name(f"{folder.name}-calibration.json")


def by_hand(threshold: float | None, pixel: float | None) -> Limits:
    """The limits of --threshold and --pixel-threshold, for all images alike.

    An `SpgError` if one is no finite number.
    """

    def set_by_hand(value: float | None) -> Threshold | None:
        if value is not None and not math.isfinite(value):
            raise SpgError(f"A threshold is {value}. Expected is a finite number.")
        return None if value is None else Threshold(value=value, says="set by hand")

    return Limits(image=set_by_hand(threshold), pixel=set_by_hand(pixel), scores=(), anomalous=0)
