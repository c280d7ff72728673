"""How a run of `predict` decides: by a calibration, or by thresholds that were given by hand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from spg_pipe.artefacts.files import fingerprint
from spg_pipe.decision.calibration import (
    COMMAND,
    Calibration,
    Judging,
    Limits,
    by_hand,
    place_beside,
)
from spg_pipe.decision.drift import Drift
from spg_pipe.decision.thresholds import benjamini_hochberg
from spg_pipe.errors import SpgError
from spg_pipe.predict.items import Reading
from spg_pipe.predict.predictor import Predictor

DRIFT_IMAGES = 10_000
"""One false warning of drift in so many normal images, unless it is said."""


@dataclass(frozen=True)
class HowToDecide:
    """What a person asked for."""

    calibration: Path | None = None
    """None: the file beside the detector, if it is there."""
    without: bool = False
    """Use no calibration."""
    threshold: float | None = None
    pixel_threshold: float | None = None
    fdr: float | None = None
    """q: the whole run is decided as one batch as well."""
    drift: int | None = None
    """N: one false warning in so many normal images; 0: none is given."""

    def __post_init__(self) -> None:
        hand = self.threshold is not None or self.pixel_threshold is not None
        ways = {"--calibration": self.calibration, "--no-calibration": self.without}
        ways["--threshold and --pixel-threshold"] = hand
        if len(given := [name for name, value in ways.items() if value]) > 1:
            raise SpgError(f"{given[0]} and {given[1]} exclude each other: leave one out.")
        if (hand or self.without) and (self.fdr is not None or self.drift is not None):
            option = "--fdr" if self.fdr is not None else "--drift"
            raise SpgError(
                f"{option} needs the scores of normal images: make a calibration with `{COMMAND}`."
            )


@dataclass
class Decider:
    """The thresholds of a run, and what is watched and summed up while it goes by."""

    calibration: Calibration | None
    how: HowToDecide
    _watches: dict[str, Drift] = field(default_factory=dict)
    _p_values: list[float] = field(default_factory=list)
    """NaN of a bad file."""

    def limits(self, group: str) -> Limits:
        """Of a group; an `SpgError` if the calibration lacks it."""
        if self.calibration:
            return self.calibration.limits(group)
        return by_hand(self.how.threshold, self.how.pixel_threshold)

    @property
    def identity(self) -> dict[str, str]:
        """What results depend on, besides what judges."""
        how = self.how
        made = self.calibration.fingerprint if self.calibration else ""
        hand = f"{how.threshold} {how.pixel_threshold}"
        return {"calibration": made, "thresholds": hand, "fdr": str(how.fdr)}

    def warns(self, group: str, score: float | None) -> bool:
        """Take the score of the next image, None of a bad file; whether it is time to warn.

        Images come in the order of the input. Their p-values are kept for `batch`.
        """
        if score is None or self.calibration is None:
            self._p_values.append(math.nan)
            return False
        limits, images = (
            self.limits(group),
            DRIFT_IMAGES if self.how.drift is None else self.how.drift,
        )
        p = limits.p_value(score)
        self._p_values.append(math.nan if p is None else p)
        if not (images and limits.image and self.calibration.watchable):
            return False
        key = group if self.calibration.by_folder else ""
        if key not in self._watches:
            self._watches[key] = Drift(limits.scores, limits.image.value, images)
        return self._watches[key].warns(score)

    def batch(self) -> list[bool] | None:
        """Which images are anomalous at the rate of --fdr, all being one batch; None without it."""
        if self.how.fdr is None:
            return None
        p = np.array(self._p_values)
        found = np.zeros(len(p), dtype=bool)
        found[~np.isnan(p)] = benjamini_hochberg(p[~np.isnan(p)], self.how.fdr)
        return [bool(each) for each in found]


def calibration_for(detector: Path, how: HowToDecide) -> tuple[Path, Calibration] | None:
    """The file that decides, if there is one.

    An `SpgError` if it is missing where it was named, damaged, or has no normal images' scores
    where --fdr needs them.
    """
    beside = place_beside(detector)
    path = how.calibration or (beside if beside.is_file() else None)
    by_itself = how.without or how.threshold is not None or how.pixel_threshold is not None
    made = None if path is None or by_itself else (path, Calibration.load(path))
    if how.fdr is not None and made is None:
        raise SpgError(
            f"--fdr needs the scores of normal images, and there is no {beside}: make it with "
            f"`{COMMAND} {detector} GOOD`, or name another with --calibration."
        )
    return made


def decider_of(
    found: tuple[Path, Calibration] | None, how: HowToDecide, judging: Judging
) -> Decider:
    """The decider of a run; an `SpgError` if the calibration does not hold for it."""
    if found is None:
        return Decider(None, how)
    path, calibration = found
    calibration.require(judging, date.today(), path)
    return Decider(calibration, how)


def judging_of(predictor: Predictor, reading: Reading, identity: Mapping[str, str]) -> Judging:
    """By what the images of a run are judged; `identity` as `ready` gives it."""
    tiles = predictor.backbone.spec.tiles
    bank = {name: identity[name] for name in ("normals", "bank", "alone") if name in identity}
    return Judging(
        detector=predictor.detector.fingerprint,
        tiles=tuple(tiles.sides) if tiles else (),
        bank=fingerprint(bank) if bank else None,
        white=reading.white,
    )
