"""A detector → a folder that judges images without this project: graphs, a runner, a card."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from spg_pipe.artefacts.files import fresh_folder, write_text
from spg_pipe.artefacts.record import read_record, write_record
from spg_pipe.decision.calibration import Calibration, Limits
from spg_pipe.deploy.card import Card, FileCard, card_of, facts_of, in_words
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
from spg_pipe.errors import SpgError, listed
from spg_pipe.predict.predictor import Predictor

CARD, CARD_IN_WORDS = "card.json", "card.md"


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

    An `SpgError` if `out` holds anything but an export, a graph differs from `predict` by more than
    `check.MOST`, or a package is missing.

    Parameters
    ----------
    predictor : Predictor
        On the CPU, without tiles, in float32.
    formats : sequence of "onnx" | "openvino" | "torch"
        Of ONNX there always is a file.
    name : str
        Of the detector, for people.
    limits : Limits, optional
        Without a threshold for images the graph has no `decision`.
    calibration : Calibration, optional
        That `limits` are from.
    """
    require_replaceable(out)
    image = limits.image if limits else None
    card = card_of(name, predictor, limits, calibration)
    say("Tracing the detector …")
    size = card.backbone.preprocess.size
    program = traced(Graph(predictor, image.value if image else None), size)
    expected = [predicted(predictor, each) for each in made_up(size)]
    with fresh_folder(out) as folder:
        files = _written(program, folder, formats, card, say)
        agreement = {}
        for form, path in files.items():
            say(f"Comparing {form} with PyTorch …")
            agreement[form] = require_agreement(_READ[form](path), expected, size, form)
        shutil.copyfile(Path(__file__).with_name("runner.py"), folder / "run.py")
        card = card.model_copy(
            update={
                "agreement": agreement,
                "files": _files(folder),
                "versions": card.versions | _versions(formats),
            }
        )
        write_record(folder / CARD, card)
        write_text(folder / CARD_IN_WORDS, in_words(card))
    return card


def _written(
    program: Any, folder: Path, formats: Sequence[Format], card: Card, say: Callable[[str], None]
) -> dict[Format, Path]:
    """The graph's files, one for each format."""
    files: dict[Format, Path] = {"onnx": folder / ONNX}
    say("Writing ONNX …")
    write_onnx(program, 2 + (card.image_threshold is not None), files["onnx"], facts_of(card))
    if "openvino" in formats:
        files["openvino"] = folder / OPENVINO
        write_openvino(files["onnx"], files["openvino"])
    if "torch" in formats:
        files["torch"] = folder / TORCH
        write_torch(program, files["torch"])
    return files


def require_replaceable(out: Path) -> None:
    """Refuse, with an `SpgError`, a folder that holds anything but what an export wrote there."""
    held = {each.relative_to(out).as_posix() for each in out.rglob("*") if not _is_folder(each)}
    if not held:
        return
    ours = {CARD, CARD_IN_WORDS}
    if CARD in held:
        ours |= set(read_record(out / CARD, Card, "export", "spg-pipe export").files)
    if CARD not in held or held - ours:
        raise SpgError(
            f"{out} holds other files than an export ({listed(sorted(held - ours))}), and would be "
            "replaced as a whole. Choose another OUT, or move them away."
        )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


_READ: dict[Format, Callable[[Path], Judge]] = {
    "onnx": read_onnx,
    "openvino": read_openvino,
    "torch": read_torch,
}


def _files(folder: Path) -> dict[str, FileCard]:
    """Every file of a folder, with its digest."""
    files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        files[name] = FileCard(bytes=path.stat().st_size, sha256=digest)
    return files


def _versions(formats: Sequence[Format]) -> dict[str, str]:
    names = ["onnx", "onnxscript", "onnxruntime", *["openvino"] * ("openvino" in formats)]
    return {name: metadata.version(name) for name in names}
