"""`calibrate`: images that are known to be good, perhaps also defects → a calibration file."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spg_pipe.artefacts.files import require_writable, versions
from spg_pipe.bank.few_shot import KNOWN
from spg_pipe.datasets.layouts.folder import scan_folder
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.names import is_normal
from spg_pipe.decision.calibration import Calibration, Limits, Threshold, place_beside
from spg_pipe.decision.limits import Asked, GroupScores, limits_of
from spg_pipe.errors import SpgError, UnsuitableError, counted, listed, one_line
from spg_pipe.images.reading import read_mask
from spg_pipe.metrics import HistogramAccumulator
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.decide import judging_of
from spg_pipe.pipeline.predict import Ask, ready
from spg_pipe.predict.items import Item
from spg_pipe.predict.judge import JudgedImage, Unreadable, judge_items
from spg_pipe.predict.predictor import Predictor


@dataclass(frozen=True)
class HowToCalibrate:
    """What is to be found, and what is to be said of it."""

    asked: Asked
    by_folder: bool = False
    """Thresholds for each first folder below the source: a camera or a category."""
    valid_days: int | None = None
    file: Path | None = None
    """None: beside the detector."""


class Known(NamedTuple):
    """What the folders say of an image."""

    label: int
    mask: Path | None


class Seen(NamedTuple):
    """What is kept of a judged image."""

    item: Item
    sha256: str
    known: Known
    score: float
    in_bank: bool
    top: np.float32
    """The map's highest value."""
    anomaly_map: np.ndarray | None
    """(H, W) float32, where pixels are labelled and count; and its mask."""
    mask: np.ndarray | None


@dataclass
class _Group:
    normal: list[float] = field(default_factory=list)
    tops: list[np.float32] = field(default_factory=list)
    anomalous: list[float] = field(default_factory=list)
    pixels: HistogramAccumulator = field(default_factory=HistogramAccumulator)
    left_out: bool = False
    """See `GroupScores.left_out`."""

    def add(self, seen: Seen) -> None:
        if seen.known.label == LABEL_ANOMALOUS:
            self.anomalous.append(seen.score)
        else:
            self.normal.append(seen.score)
            self.tops.append(seen.top)
        if seen.anomaly_map is not None and seen.mask is not None:
            self.pixels.update(seen.anomaly_map, seen.mask)

    def scores(self) -> GroupScores:
        groups = self.pixels.groups() if self.pixels.counts.anomalous_pixels else None
        tops = np.array(self.tops, np.float32)
        anomalous = np.array(self.anomalous)
        return GroupScores(np.array(self.normal), tops, anomalous, groups, self.left_out)


def calibrate(ask: Ask, how: HowToCalibrate, console: Console) -> tuple[Path, Calibration]:
    """Judge the images as `predict` does, and write what follows from their scores.

    Raises
    ------
    SpgError
        If images are too few, or of one kind where both are needed (their group is named), or the
        same image is among the normal ones and the defects.
    """
    path = how.file or place_beside(ask.detector)
    require_writable(path)
    known = labels_of([Path(source) for source in ask.sources], how.asked)
    items, predictor, reading, _ = ready(ask, console)
    if how.by_folder:
        _require_cameras([item.group for item in items])
    groups, left_out = defaultdict[str, _Group](_Group), defaultdict[str, list[str]](list)
    if not ask.sources:
        groups[""] = _of_goods(predictor, how)
    contents: dict[str, int] = {}
    for item in items:
        left_out[_unwanted(known_of(item, known), how.asked)].append(item.name)
    wanted = set(left_out.pop("", ()))
    judged = [item for item in items if item.name in wanted]
    see = partial(_see, known=known, exif=reading.exif, pixels=how.asked.from_labels)
    with console.progress("calibrate") as update:
        for number, seen in enumerate(judge_items(predictor, judged, reading, see), 1):
            update(number, len(judged))
            if why := _why_not(seen, contents):
                left_out[why].append(seen.item.name)
            elif isinstance(seen, Seen):
                groups[seen.item.group if how.by_folder else ""].add(seen)
    notes = [
        one_line(f"{counted(len(names), 'image')} {why}: {listed(names)}")
        for why, names in left_out.items()
    ]
    for note in notes:
        console.say(f"Left out: {note}")
    asked, today = how.asked, date.today()
    made = Calibration(
        judging=judging_of(predictor, reading),
        method=asked.method,
        false_alarms=asked.false_alarms if asked.from_normals else None,
        confidence=asked.confidence if asked.method == "tolerance" else None,
        recall=asked.recall if asked.method == "recall" else None,
        by_folder=how.by_folder,
        groups=_limits(groups, asked),
        notes=tuple(notes),
        made=today,
        valid_until=today + timedelta(days=how.valid_days) if how.valid_days else None,
        versions=versions(),
    ).sealed()
    made.save(path)
    return path, made


def _of_goods(predictor: Predictor, how: HowToCalibrate) -> _Group:
    """The normal images of the bank, each judged without itself."""
    bank = predictor.bank
    scores = bank.record.scores(alone=predictor.alone) if bank else np.empty(0)
    if not len(scores) or how.by_folder or how.asked.method not in ("conformal", "manual"):
        raise SpgError(
            "Which images? Name normal ones (GOOD...). Without, a calibration is of the images of "
            "--normals themselves, two or more, by the method conformal or manual and in one group."
        )
    return _Group(scores.tolist(), left_out=True)


def labels_of(sources: Sequence[Path], asked: Asked) -> dict[Path, Known]:
    """What folders say of the images in them, by the rules of the layout `folder`.

    Where none of a folder's images is labelled, all are taken for normal, if the method takes
    normal images alone. An `SpgError` if a folder is of another layout or ambiguous.
    """
    found = {}
    for folder in sources:
        entries = scan_folder(folder, "all", lambda _: True).entries if folder.is_dir() else []
        labelled = asked.from_labels or any(each.label == LABEL_NORMAL for each in entries)
        for entry in entries:
            normal = entry.label == LABEL_UNKNOWN and not labelled
            mask = folder / entry.mask if entry.mask else None
            found[folder / entry.path] = Known(LABEL_NORMAL if normal else entry.label, mask)
    return found


def known_of(item: Item, known: Mapping[Path, Known]) -> Known:
    """What is known of an image; one that was named by itself is what the command asks for."""
    return known.get(item.path or Path(), Known(LABEL_NORMAL, None))


def _require_cameras(groups: Sequence[str]) -> None:
    if labels := sorted({group for group in groups if is_normal(group)}):
        raise SpgError(
            f"--by-folder takes the first folder below the source for a camera or category, and "
            f"{labels[0]}/ says what its images are. Give the folder above those of the cameras."
        )


def _unwanted(known: Known, asked: Asked) -> str:
    """Why an image's label keeps it out; "" if it does not."""
    if known.label == LABEL_UNKNOWN:
        return "without a label"
    if known.label == LABEL_ANOMALOUS and asked.from_normals:
        return f"with a defect, of which the method {asked.method} takes none"
    return ""


def _see(
    judged: JudgedImage | Unreadable, known: Mapping[Path, Known], exif: bool, pixels: bool
) -> Seen | Unreadable:
    """What is kept of an image; called in several threads."""
    if isinstance(judged, Unreadable):
        return judged
    of, anomaly_map = known_of(judged.item, known), judged.anomaly_map
    mask = None
    if pixels and of.label != LABEL_ANOMALOUS:
        mask = np.zeros(anomaly_map.shape, np.uint8)
    elif pixels and of.mask:
        mask = read_mask(of.mask, exif=exif)
    if mask is not None and (counts := judged.view.judged) is not None:
        anomaly_map, mask = anomaly_map[counts][None], mask[counts][None]
    return Seen(
        item=judged.item,
        sha256=judged.sha256,
        known=of,
        score=judged.columns["score"],
        in_bank=bool(judged.columns.get(KNOWN, False)),
        top=judged.anomaly_map.max(),
        anomaly_map=anomaly_map if mask is not None else None,
        mask=mask,
    )


def _why_not(seen: Seen | Unreadable, contents: dict[str, int]) -> str:
    """Why a judged image does not count; "" if it does, and its content is then noted."""
    if isinstance(seen, Unreadable):
        return f"that cannot be judged ({seen.error})"
    if seen.in_bank:
        return "among the normal images of the bank, which finds them normal"
    anomalous = int(seen.known.label == LABEL_ANOMALOUS)
    if seen.sha256 not in contents:
        contents[seen.sha256] = anomalous
        return ""
    if contents[seen.sha256] != anomalous:
        raise SpgError(
            f"The image {seen.item.name} is among the normal images and among the defects. Remove "
            "it from one of them."
        )
    return "with the content of another"


def _limits(groups: Mapping[str, _Group], asked: Asked) -> dict[str, Limits]:
    """Group → limits; an `SpgError` names all groups that have none."""
    limits, faults = {}, []
    for name in sorted(groups):
        try:
            limits[name] = limits_of(groups[name].scores(), asked)
        except UnsuitableError as error:
            faults.append(f"{name}: {error}" if name else str(error))
    if faults or not limits:
        raise SpgError(" ".join(faults) or "No image is left to calibrate on.")
    return limits


def in_words(path: Path, made: Calibration, ask: Ask) -> str:
    """The thresholds, what is promised, and what to do next."""
    lines = []
    for name, limits in made.groups.items():
        images = counted(len(limits.scores), "normal image")
        also = f" and {limits.anomalous} with a defect" if limits.anomalous else ""
        lines.append(f"{name or 'All images'}: {images}{also}")
        lines += _line("image score", limits.image) + _line("pixel", limits.pixel)
    until = f"; it holds until {made.valid_until}" if made.valid_until else ""
    lines.append(f"Calibration → {path}{until}")
    beside = "" if path == place_beside(ask.detector) else f" --calibration {path}"
    given = f"{ask.detector} SOURCE{ask.again}{beside}"
    return "\n".join([*lines, f"Decide with: spg-pipe predict {given}"])


def _line(what: str, threshold: Threshold | None) -> list[str]:
    return [f"  {what} above {threshold.value:.6g}: {threshold.says}"] if threshold else []
