"""A judged image becomes a result: a line, and its pictures."""

import hashlib
import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spg_pipe.bank.normal_patches import KNOWN
from spg_pipe.datasets.walk import EXPLAINED, MAPS, MASKS, OVERLAYS
from spg_pipe.decision.calibration import Limits, by_hand
from spg_pipe.decision.heat_maps import eight_bit, jpeg
from spg_pipe.errors import SpgError
from spg_pipe.explain.explanation import Explanation
from spg_pipe.explain.lines import line_of as line_of_explanation
from spg_pipe.explain.picture import QUALITY, draw
from spg_pipe.predict.items import Item
from spg_pipe.predict.judge import JudgedImage, Unreadable
from spg_pipe.predict.pictures import map_png, mask_png, overlay_picture
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.result import Failure, Files, Result, line_of, result_of
from spg_pipe.predict.run import Entry, write_picture

_NAME_BYTES = 240
"""Of a picture's name; a file system takes 255."""
_PATH_BYTES = 1024
"""Of all names below the output folder, whose own are to fit into the system's 4096 as well."""


@dataclass(frozen=True)
class Finish:
    """What results are made of, besides the images."""

    predictor: Predictor
    out: Path
    plan: Callable[[Collection[str]], None] = lambda _: None
    """Is told the pictures of an image before they are written; see `ResultFolder.plan`."""
    limits: Callable[[str], Limits] = lambda _: by_hand(None, None)
    """The thresholds of a group of images."""
    overlays: bool = True
    """Draw a heat map of every image."""
    maps: bool = False
    """Write every map."""
    masks: bool = False
    """Write what is above the pixel threshold."""
    explained: bool = True
    """Draw why every image has its score, if it is explained."""
    atoms: int | None = None
    """List only so many contributions an image in explanations; None: all."""
    also: Callable[[JudgedImage, Result], None] | None = None
    """Is told each image before its line is written; from any thread."""


def finish(judged: JudgedImage | Unreadable, how: Finish) -> Entry:
    """The lines of an image, when its pictures are written.

    One whose group has no threshold has failed, too. An OSError if pictures cannot be written; an
    `SpgError` if masks are asked for without a threshold.
    """
    item, digest = judged.item, judged.sha256
    if isinstance(judged, Unreadable):
        return _failed(item, digest, judged.error)
    try:
        limits = how.limits(item.group)
    except SpgError as error:
        return _failed(item, digest, str(error))
    predictor = how.predictor
    result = result_of(
        item.name,
        judged.columns,
        judged.anomaly_map,
        limits,
        protocol=predictor.detector.record.protocol.name,
        supervision=predictor.supervision,
        goods=predictor.goods,
    )
    result = result.model_copy(
        update={
            "sha256": digest,
            "group": item.group,
            "ignored_share": judged.view.ignored_share,
            "files": draw_pictures(judged, result, how),
        }
    )
    if how.also:
        how.also(judged, result)
    return Entry(item, result, line_of(result), _why(judged, result, how))


def _failed(item: Item, digest: str | None, error: str) -> Entry:
    failure = Failure(path=item.name, sha256=digest, group=item.group, error=error)
    return Entry(item, failure, line_of(failure), json.dumps({"path": item.name, "error": error}))


def _why(judged: JudgedImage, result: Result, how: Finish) -> str:
    """The line that explains a score; empty if that was not asked for."""
    if judged.explanation is None:
        return ""
    about: dict[str, object] = {}
    if result.among_normals is not None:
        about = {"supervision": result.supervision, KNOWN: result.among_normals}
    explanation = judged.explanation
    return line_of_explanation(explanation, judged.number, judged.item.name, how.atoms, about)


def draw_pictures(judged: JudgedImage, result: Result, how: Finish) -> Files:
    """Write the pictures of an image; an OSError if that is not possible."""
    name, shown, limit = judged.item.name, how.predictor.shown, result.pixel_threshold
    pixels, anomaly_map = judged.pixels, judged.anomaly_map
    pictures: dict[str, tuple[str, Callable[[], bytes]]] = {}

    def add(kind: str, folder: str, ending: str, drawn: Callable[[], bytes]) -> None:
        pictures[kind] = picture_path(name, folder, ending).as_posix(), drawn

    if how.overlays:
        drawn = partial(overlay_picture, pixels, anomaly_map, shown, limit)
        add("overlay", OVERLAYS, ".jpg", drawn)
    if how.maps:
        add("map", MAPS, ".png", partial(map_png, anomaly_map))
    if how.masks:
        if limit is None:
            raise SpgError(
                "--masks are of what is above the pixel threshold, and there is none. Give one "
                "with --pixel-threshold, or a --calibration that has one."
            )
        add("mask", MASKS, ".png", partial(mask_png, anomaly_map, limit))
    if how.explained and judged.explanation is not None:
        drawn = partial(_explanation_picture, judged, judged.explanation, shown)
        add("explanation", EXPLAINED, ".jpg", drawn)
    files = {kind: file for kind, (file, _) in pictures.items()}
    how.plan(files.values())
    for file, picture in pictures.values():
        write_picture(how.out, file, picture())
    return Files(**files)


def _explanation_picture(
    judged: JudgedImage, explanation: Explanation, shown: tuple[float, float]
) -> bytes:
    pixels = eight_bit(judged.pixels)
    return jpeg(draw(pixels, judged.anomaly_map, explanation, judged.number, shown), QUALITY)


def picture_path(name: str, folder: str, ending: str = ".jpg") -> Path:
    """The file of an image's picture, relative to the output folder; the same in every run.

    The image's own path and the ending. Where that is too long for a file, leads out of the folder,
    or has a folder in it that could be another image's picture, the name's beginning and 16 hex
    digits of the whole path's SHA-256.
    """
    plain = Path(name)
    file, whole = os.fsencode(f"{plain.name}{ending}"), os.fsencode(name)
    fits = len(file) <= _NAME_BYTES and len(whole) + len(folder) < _PATH_BYTES
    aside = plain.is_absolute() or ".." in plain.parts
    if fits and not aside and not any(part.endswith(ending) for part in plain.parts[:-1]):
        return Path(folder, plain.parent, f"{plain.name}{ending}")
    start = os.fsdecode(os.fsencode(plain.name)[: _NAME_BYTES // 2].decode(errors="ignore"))
    return Path(folder, f"{start}-{hashlib.sha256(whole).hexdigest()[:16]}{ending}")
