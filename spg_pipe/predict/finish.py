"""A judged image becomes a result: a line, and its pictures."""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spg_pipe.artefacts.files import jsonable
from spg_pipe.bank.few_shot import KNOWN
from spg_pipe.datasets.walk import EXPLAINED, OVERLAYS
from spg_pipe.decision.heat_maps import eight_bit, overlay
from spg_pipe.errors import naming
from spg_pipe.explain.lines import line_of
from spg_pipe.explain.picture import QUALITY as EXPLAINED_QUALITY
from spg_pipe.explain.picture import draw
from spg_pipe.predict.judge import JudgedImage, Unreadable
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.run import Line

SCHEMA = "spg-pipe/prediction/1"
QUALITY = 90
"""Of an overlay's JPEG: a tenth of a PNG's bytes and a hundredth of its time."""
_NAME_BYTES = 240
"""Of a picture's name; a file system takes 255."""
_PATH_BYTES = 1024
"""Of all names below the output folder, whose own are to fit into the system's 4096 as well."""


@dataclass(frozen=True)
class Finish:
    """What results are made of, besides the images."""

    predictor: Predictor
    out: Path
    overlays: bool = True
    """Draw a heat map of every image."""
    explained: bool = True
    """Draw why every image has its score, if it is explained."""
    atoms: int | None = None
    """List only so many contributions an image in explanations; None: all."""


def finish(judged: JudgedImage | Unreadable, how: Finish) -> Line:
    """The line of an image, when its pictures are written; an OSError if they cannot be."""
    if isinstance(judged, Unreadable):
        fault = {"path": judged.item.name, "sha256": judged.sha256, "error": judged.error}
        return Line(judged.item, json.dumps({"schema": SCHEMA, **fault}), json.dumps(fault))
    predictor, item = how.predictor, judged.item
    height, width = judged.anomaly_map.shape
    row, column = np.unravel_index(int(judged.anomaly_map.argmax()), (height, width))
    parts: dict[str, object] = dict(judged.columns)
    score, known = parts.pop("score"), bool(parts.pop(KNOWN, False))
    about: dict[str, object] = {}
    if predictor.bank:
        about = {"supervision": predictor.supervision, KNOWN: known}
    content: dict[str, object] = {
        "schema": SCHEMA,
        "path": item.name,
        "sha256": judged.sha256,
        "group": item.group,
        "score": score,
        "height": height,
        "width": width,
        "peak_row": int(row),
        "peak_column": int(column),
        "parts": parts,
        "protocol": predictor.detector.record.protocol.name,
        **about,
        "files": draw_pictures(judged, how),
    }
    why = ""
    if judged.explanation is not None:
        why = line_of(judged.explanation, judged.number, item.name, how.atoms, about)
    return Line(item, json.dumps(jsonable(content), allow_nan=False), why)


def draw_pictures(judged: JudgedImage, how: Finish) -> dict[str, str]:
    """Write the pictures of an image; kind → file, relative to the output folder."""
    files, name, shown = {}, judged.item.name, how.predictor.shown
    pixels = eight_bit(judged.pixels)
    if how.overlays:
        drawn = overlay(pixels, judged.anomaly_map, low=shown[0], high=shown[1])
        file = picture_path(name, OVERLAYS)
        _write(how.out / file, Image.fromarray(drawn), QUALITY)
        files["overlay"] = file.as_posix()
    if how.explained and judged.explanation is not None:
        picture = draw(pixels, judged.anomaly_map, judged.explanation, judged.number, shown)
        file = picture_path(name, EXPLAINED)
        _write(how.out / file, picture, EXPLAINED_QUALITY)
        files["explained"] = file.as_posix()
    return files


def _write(path: Path, picture: Image.Image, quality: int) -> None:
    """Write a picture in place: its image counts as done only when its line is there, too."""
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=quality)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path, path):
        path.write_bytes(data.getbuffer())


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
