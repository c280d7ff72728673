"""A detector → a folder that judges images without this project: graphs, a runner, a card."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from spg_pipe.artefacts.files import fresh_folder, write_text
from spg_pipe.artefacts.record import write_record
from spg_pipe.decision.calibration import Calibration, Limits
from spg_pipe.deploy.card import Agreed, Card, FileCard, card_of, facts_of, in_words
from spg_pipe.deploy.check import made_up, predicted, require_agreement
from spg_pipe.deploy.formats import (
    ONNX,
    OPENVINO,
    TORCH,
    Format,
    Judge,
    read_onnx,
    read_openvino,
    read_torch,
    traced,
    write_onnx,
    write_openvino,
    write_torch,
)
from spg_pipe.deploy.graph import Graph
from spg_pipe.predict.predictor import Predictor


def export(
    predictor: Predictor,
    out: Path,
    formats: Sequence[Format],
    *,
    name: str,
    limits: Limits | None = None,
    calibration: Calibration | None = None,
    say: Callable[[str], None] = print,
) -> Card:
    """Write the folder, as a whole or not at all, after its graphs were held to `predict`.

    Parameters
    ----------
    predictor : Predictor
        On the CPU, without tiles.
    formats : sequence of "onnx" | "openvino" | "torch"
        Of ONNX there always is a file.
    name : str
        Of the detector, for people.
    limits : Limits, optional
        Without a threshold for images the graph has no `decision`.
    calibration : Calibration, optional
        That `limits` are from.

    Raises
    ------
    SpgError
        If a graph differs from `predict` by more than `check.MOST`, or a package is missing.
    """
    image = limits.image if limits else None
    card = card_of(name, predictor, limits, calibration)
    say("Tracing the detector …")
    program = traced(Graph(predictor, image.value if image else None))
    expected = [predicted(predictor, each) for each in made_up(card.backbone.image_size)]
    with fresh_folder(out) as folder:
        files = _write(program, 2 + bool(image), folder, formats, card, say)
        agreement = {}
        for form, path in files.items():
            say(f"Comparing {form} with PyTorch …")
            judge = _READ[form](path)
            agreed = require_agreement(judge, expected, card.backbone.image_size, form)
            agreement[form] = Agreed(**agreed._asdict())
        shutil.copyfile(Path(__file__).with_name("runner.py"), folder / "run.py")
        card = card.model_copy(
            update={
                "agreement": agreement,
                "files": _files(folder),
                "versions": card.versions | _versions(formats),
            }
        )
        write_record(folder / "card.json", card)
        write_text(folder / "card.md", in_words(card))
    return card


def _write(
    program: Any,
    outputs: int,
    folder: Path,
    formats: Sequence[Format],
    card: Card,
    say: Callable[[str], None],
) -> dict[Format, Path]:
    """The graph in each format; where they are."""
    files: dict[Format, Path] = {"onnx": folder / ONNX}
    say("Writing ONNX …")
    write_onnx(program, outputs, files["onnx"], facts_of(card))
    if "openvino" in formats:
        files["openvino"] = folder / OPENVINO
        write_openvino(files["onnx"], files["openvino"])
    if "torch" in formats:
        files["torch"] = folder / TORCH
        write_torch(program, files["torch"])
    return files


_READ: dict[Format, Callable[[Path], Judge]] = {
    "onnx": read_onnx,
    "openvino": read_openvino,
    "torch": read_torch,
}


def _files(folder: Path) -> dict[str, FileCard]:
    """Every file of a folder, with its digest."""
    found = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        found[name] = FileCard(bytes=path.stat().st_size, sha256=digest)
    return found


def _versions(formats: Sequence[Format]) -> dict[str, str]:
    names = ["onnx", "onnxscript", "onnxruntime", *["openvino"] * ("openvino" in formats)]
    return {name: metadata.version(name) for name in names}
