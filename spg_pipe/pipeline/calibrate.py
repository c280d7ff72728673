"""`calibrate`: images that are known to be good, perhaps also defects → a calibration file."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spg_pipe.artefacts.files import require_writable, versions
from spg_pipe.bank.normal_patches import KNOWN
from spg_pipe.datasets.layouts.folder import scan_folder
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN
from spg_pipe.datasets.names import is_normal
from spg_pipe.decision.calibration import Calibration, Limits, Threshold
from spg_pipe.decision.limits import Asked, GroupScores, limits_of
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, UnsuitableError, counted, listed, one_line
from spg_pipe.images.files import source_id
from spg_pipe.images.reading import read_mask
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.decide import judging_of
from spg_pipe.pipeline.held_out import learned_from
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
    label: int
    score: float
    in_bank: bool
    top: np.float32
    """The map's highest value."""
    pixels: tuple[np.ndarray, np.ndarray] | None
    """Where pixels are labelled: map and mask of those that count, (H, W) or (1, n)."""


def calibrate(ask: Ask, how: HowToCalibrate, console: Console) -> tuple[Path, Calibration]:
    """Judge the images as `predict` does, and write what follows from their scores.

    An `SpgError` if images are too few, or of one kind where both are needed (their group is
    named), or the same image is among the normal ones and the defects.
    """
    path = how.file or ask.calibration
    replaced = _require_place(path)
    known = labels_of([Path(source) for source in ask.sources], how.asked)
    items, predictor, reading, _ = ready(ask, console)
    groups, left_out = defaultdict[str, GroupScores](GroupScores), defaultdict[str, list[str]](list)
    if not ask.sources:
        groups[""] = _of_goods(predictor, how)
    chosen: Iterable[Item] = _wanted(items, known, how, left_out)
    if not items.live:
        chosen = list(chosen)
    see = partial(_see, known=known, exif=reading.exif, pixels=how.asked.from_labels)
    learned = set() if predictor.alone else _learned(ask.detector, predictor.detector)
    contents: dict[str, int] = {}
    with console.progress("calibrate") as update:
        judged = judge_items(predictor, chosen, reading, see, live=items.live)
        for number, seen in enumerate(judged, 1):
            update(number, len(chosen) if isinstance(chosen, list) else None)
            if why := _why_not(seen, contents, learned):
                left_out[why].append(seen.item.name)
            elif isinstance(seen, Seen):
                _add(groups[seen.item.group if how.by_folder else ""], seen)
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
        from_bank=not ask.sources,
        groups=_limits(groups, asked, notes),
        notes=tuple(notes),
        made=today,
        valid_until=today + timedelta(days=how.valid_days) if how.valid_days else None,
        versions=versions(),
    ).sealed()
    made.save(path)
    if replaced:
        console.say(f"Replaced: {path}, which was {replaced}.")
    return path, made


def _require_place(path: Path) -> str:
    """What is to be replaced, in words; an `SpgError` if it is not a calibration."""
    require_writable(path)
    if not path.exists():
        return ""
    try:
        earlier = Calibration.load(path)
    except SpgError as error:
        raise SpgError(
            f"{path} is there and is no calibration that could be replaced: {error} Name another "
            "--out, or move it away."
        ) from error
    return f"made {earlier.made} by the method {earlier.method}"


def _learned(path: Path, detector: Detector) -> set[str]:
    """SHA-256, or `source_id`, of images that a detector was made from, as far as it is known."""
    return {*detector.record.painted_on, *learned_from(path, detector.fingerprint)}


def _add(group: GroupScores, seen: Seen) -> None:
    if seen.label == LABEL_ANOMALOUS:
        group.anomalous.append(seen.score)
    else:
        group.normal.append(seen.score)
        group.tops.append(seen.top)
    if seen.pixels:
        group.pixels.update(*seen.pixels)


def _of_goods(predictor: Predictor, how: HowToCalibrate) -> GroupScores:
    """The normal images of the bank, each judged without itself."""
    bank = predictor.bank
    scores = bank.record.scores(alone=predictor.alone) if bank else np.empty(0)
    if not len(scores) or how.by_folder or how.asked.method not in ("conformal", "manual"):
        raise SpgError(
            "Which images? Name normal ones (GOOD...). Without, a calibration is of the images of "
            "--normals themselves, two or more, by the method conformal or manual and in one group."
        )
    return GroupScores(scores.tolist(), left_out=True)


def labels_of(sources: Sequence[Path], asked: Asked) -> dict[Path, Known]:
    """What folders say of the images in them, by the rules of the layout `folder`.

    Where none of a folder's images is labelled, all are taken for normal, if the method takes
    normal images alone. An `SpgError` if a folder is of another layout or ambiguous.
    """
    labels = {}
    for folder in sources:
        entries = scan_folder(folder, "all", lambda _: True).entries if folder.is_dir() else []
        labelled = asked.from_labels or any(each.label == LABEL_NORMAL for each in entries)
        for entry in entries:
            normal = entry.label == LABEL_UNKNOWN and not labelled
            mask = folder / entry.mask if entry.mask else None
            labels[folder / entry.path] = Known(LABEL_NORMAL if normal else entry.label, mask)
    return labels


def known_of(item: Item, known: Mapping[Path, Known]) -> Known:
    """What is known of an image; one that was named by itself is what the command asks for."""
    return known.get(item.path or Path(), Known(LABEL_NORMAL, None))


def _wanted(
    items: Iterable[Item],
    known: Mapping[Path, Known],
    how: HowToCalibrate,
    left_out: dict[str, list[str]],
) -> Iterator[Item]:
    """Images to be judged, as they come; others are added to `left_out`."""
    for item in items:
        if how.by_folder and is_normal(item.group):
            raise SpgError(
                f"--by-folder takes the first folder below the source for a camera or category, "
                f"and {item.group}/ says what its images are. Give the folder above those of the "
                "cameras."
            )
        if how.by_folder and re.search("[\x00-\x1f\x7f-\x9f]", item.group):
            raise SpgError(
                f"The name of the folder {item.group!r} has a control character, and --by-folder "
                "names thresholds by it. Rename the folder."
            )
        if why := _unwanted(known_of(item, known), how.asked):
            left_out[why].append(item.name)
        else:
            yield item


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
    (label, file), anomaly_map = known_of(judged.item, known), judged.anomaly_map
    mask, labelled = None, None
    if pixels and label != LABEL_ANOMALOUS:
        mask = np.zeros(anomaly_map.shape, np.uint8)
    elif pixels and file:
        mask = read_mask(file, exif=exif)
    if mask is not None:
        if mask.shape != anomaly_map.shape:
            sizes = [f"{width}×{height}" for height, width in (mask.shape, anomaly_map.shape)]
            raise SpgError(
                f"The mask {file} has {sizes[0]} pixels, and {judged.item.name} has {sizes[1]}. "
                "Give a mask of the image's size, or remove it."
            )
        counts = judged.view.judged
        labelled = (anomaly_map, mask)
        if counts is not None:
            labelled = (anomaly_map[counts][None], mask[counts][None])
    return Seen(
        item=judged.item,
        sha256=judged.sha256,
        label=label,
        score=judged.columns["score"],
        in_bank=bool(judged.columns.get(KNOWN, False)),
        top=anomaly_map.max(),
        pixels=labelled,
    )


def _why_not(seen: Seen | Unreadable, contents: dict[str, int], learned: Set[str]) -> str:
    """Why a judged image does not count; "" if it does, and its content is then noted."""
    if isinstance(seen, Unreadable):
        return f"that cannot be judged ({seen.error})"
    if seen.in_bank:
        return "among the normal images of the bank, which finds them normal"
    if learned & {seen.sha256, source_id(seen.sha256)}:
        return "that the detector was made from, so that it knows them"
    anomalous = int(seen.label == LABEL_ANOMALOUS)
    if seen.sha256 not in contents:
        contents[seen.sha256] = anomalous
        return ""
    if contents[seen.sha256] != anomalous:
        raise SpgError(
            f"The image {seen.item.name} is among the normal images and among the defects. Remove "
            "it from one of them."
        )
    return "with the content of another"


def _limits(
    groups: Mapping[str, GroupScores], asked: Asked, notes: Sequence[str]
) -> dict[str, Limits]:
    """Group → limits; an `SpgError` names all groups that have none."""
    limits, faults = {}, []
    for name in sorted(groups):
        try:
            limits[name] = limits_of(groups[name], asked)
        except UnsuitableError as error:
            faults.append(f"{name}: {error}" if name else str(error))
    if faults or not limits:
        raise SpgError(
            " ".join(faults) or f"No image is left to calibrate on. Left out: {'; '.join(notes)}."
        )
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
    beside = "" if path == ask.calibration else f" --calibration {path}"
    given = f"{ask.detector} SOURCE{ask.again}{beside}"
    return "\n".join([*lines, f"Decide with: spg-pipe predict {given}"])


def _line(what: str, threshold: Threshold | None) -> list[str]:
    return [f"  {what} above {threshold.value:.6g}: {threshold.says}"] if threshold else []
