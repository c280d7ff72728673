"""How a run of `predict` decides: by a calibration, or by thresholds that were given by hand."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from spg_pipe.decision.calibration import (
    COMMAND,
    Calibration,
    Judging,
    Limits,
    by_hand,
)
from spg_pipe.decision.drift import Drift
from spg_pipe.decision.thresholds import benjamini_hochberg
from spg_pipe.errors import SpgError, one_line
from spg_pipe.predict.items import Reading
from spg_pipe.predict.predictor import Predictor

DRIFT_IMAGES = 10_000
"""One false warning of drift in so many normal images, unless it is said."""


@dataclass(frozen=True)
class HowToDecide:
    """What a person asked for."""

    calibration: Path | None = None
    """None: the file beside the bank or, without one, the detector, if it is there."""
    threshold: float | None = None
    pixel_threshold: float | None = None
    fdr: float | None = None
    """q: the whole run is decided as one batch as well."""
    drift: int | None = None
    """N: one false warning in so many normal images; 0: none is given."""

    def __post_init__(self) -> None:
        needs = {"--calibration": self.calibration, "--fdr": self.fdr, "--drift": self.drift}
        wrong = [name for name, value in needs.items() if value is not None]
        if self.by_hand and wrong:
            raise SpgError(f"{wrong[0]} and a threshold by hand exclude each other: leave one out.")
        by_hand(self.threshold, self.pixel_threshold)  # refuses what is no number

    @property
    def by_hand(self) -> bool:
        """Whether thresholds are given, so that no calibration is asked."""
        return self.threshold is not None or self.pixel_threshold is not None


@dataclass
class Decider:
    """The thresholds of a run, and what is watched and summed up while it goes by."""

    how: HowToDecide
    path: Path | None = None
    calibration: Calibration | None = None
    _decided: Counter[str | None] = field(default_factory=Counter)
    _watches: dict[str, Drift] = field(default_factory=dict)
    _p_values: list[float] = field(default_factory=list)
    """Of --fdr, which needs them all; NaN of a bad file."""

    @classmethod
    def of(cls, beside: Path, how: HowToDecide | None) -> "Decider":
        """With the calibration that is named or lies at `beside`; None: decides nothing.

        An `SpgError` if the file is damaged, or missing where it was named or --fdr needs it, or
        promises too little for --fdr or --drift.
        """
        if how is None or how.by_hand:
            return cls(how or HowToDecide())
        path = how.calibration or (beside if beside.is_file() else None)
        if path is None and how.fdr is not None:
            raise SpgError(
                f"--fdr needs the scores of normal images, and there is no {beside}: make it with "
                f"`{COMMAND}`, or name another with --calibration."
            )
        made = Calibration.load(path) if path else None
        if made and made.from_bank and (how.fdr is not None or how.drift):
            raise SpgError(
                f"The calibration {path} is of the bank's own images, each judged without itself. "
                "It promises nothing, so --fdr and --drift do not go with it: leave them out, or "
                f"calibrate on other normal images (`{COMMAND} DETECTOR GOOD --normals BANK`)."
            )
        return cls(how, path, made)

    def require(self, judging: Judging, groups: Iterable[str]) -> None:
        """Refuse, with an `SpgError`, a calibration of another judging or without these groups."""
        if self.calibration is not None:
            self.calibration.require(judging, date.today(), self.path or "")
            for group in dict.fromkeys(groups):
                self.calibration.limits(group)

    @property
    def says(self) -> str:
        """What decides, for a person."""
        if made := self.calibration:
            rate = "" if made.false_alarms is None else f", false alarms {made.false_alarms:g}"
            weak = ", of the bank's own images: nothing is promised" if made.from_bank else ""
            return f"Decided by {self.path} ({made.method}{rate}{weak}, made {made.made})."
        nothing = f"No thresholds: scores only rank images. `{COMMAND}` sets some."
        return "Decided by thresholds set by hand." if self.how.by_hand else nothing

    @property
    def identity(self) -> dict[str, str]:
        """What results depend on, besides what judges."""
        made = self.calibration.fingerprint if self.calibration else ""
        hand = f"{self.how.threshold} {self.how.pixel_threshold}"
        return {"calibration": made, "thresholds": hand}

    def limits(self, group: str) -> Limits:
        """Of a group; an `SpgError` if the calibration lacks it."""
        if self.calibration:
            return self.calibration.limits(group)
        return by_hand(self.how.threshold, self.how.pixel_threshold)

    @property
    def _every(self) -> int:
        return DRIFT_IMAGES if self.how.drift is None else self.how.drift

    def warns(self, group: str, score: float | None) -> bool:
        """Take the score of the next image, None of a bad file; whether it is time to warn.

        Images come in the order of the input. Their p-values are kept for `batch`.
        """
        if score is None:  # perhaps because its group has no limits
            self._keep(None)
            return False
        limits, made = self.limits(group), self.calibration
        self._keep(limits.p_value(score))
        self._decided[limits.decide(score)] += 1
        if not (made and made.watchable and limits.image and self._every):
            return False
        key = group if made.by_folder else ""
        if key not in self._watches:
            attained = None if made.method == "manual" else limits.attained
            cut = limits.image.value if attained is None else attained
            self._watches[key] = Drift(limits.scores, cut, self._every)
        return self._watches[key].warns(score)

    def _keep(self, p_value: float | None) -> None:
        if self.how.fdr is not None:  # a server's would grow for ever
            self._p_values.append(math.nan if p_value is None else p_value)

    def warning(self, name: str) -> str:
        """What is said when it is time to warn, at the image `name`."""
        return (
            f"Warning: drift. The scores of images that are called normal have left what was "
            f"calibrated, as seen at {one_line(name)}; while nothing changes, this is said once in "
            f"{self._every:,} such images, or less often. Look at the camera, the light and the "
            f"parts; if they are as they should be, run `{COMMAND}` again."
        )

    def counts(self) -> list[str]:
        """How many images were called what, for a person."""
        decided, batch = self._decided, self.batch()
        lines = []
        if decided["anomalous"] or decided["normal"]:
            lines.append(f"{decided['anomalous']:,} anomalous, {decided['normal']:,} normal")
        if batch is not None:
            lines.append(
                f"As one batch: {sum(batch):,} anomalous, of which a share of {self.how.fdr:g} or "
                "less is normal, in the mean over batches"
            )
        return lines

    def batch(self) -> list[bool] | None:
        """Which images are anomalous at the rate of --fdr, all being one batch; None without it."""
        if self.how.fdr is None:
            return None
        p = np.array(self._p_values)
        anomalous = np.zeros(len(p), dtype=bool)
        anomalous[~np.isnan(p)] = benjamini_hochberg(p[~np.isnan(p)], self.how.fdr)
        return [bool(each) for each in anomalous]


def judging_of(predictor: Predictor, reading: Reading) -> Judging:
    """By what the images of a run are judged."""
    tiles, bank = predictor.backbone.spec.tiles, predictor.bank
    return Judging(
        detector=predictor.detector.fingerprint,
        tiles=tuple(tiles.sides) if tiles else (),
        fit=reading.viewing.fit,
        bank=bank.record.fingerprint if bank else None,
        alone=predictor.alone,
        ignored=reading.viewing.digest,
        white=reading.white,
    )
