"""`export`: a detector, its bank and its thresholds as files that run without this project."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spg_pipe.artefacts.files import require_writable
from spg_pipe.bank.fitted import FittedBank, is_bank
from spg_pipe.decision.calibration import Limits
from spg_pipe.deploy.card import Card
from spg_pipe.deploy.export import export
from spg_pipe.deploy.formats import Format
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.decide import Decider, judging_of
from spg_pipe.pipeline.predict import Ask, ready

_CARD = "card.json"


def export_detector(ask: Ask, formats: Sequence[Format], console: Console) -> Card:
    """Load what judges and decides as `predict` does, and write it to `ask.out`.

    Raises
    ------
    SpgError
        If `ask.out` holds anything but an export, thresholds or a bank are of images that were
        shown otherwise, or a graph differs from `predict`.
    """
    _require_place(ask.out)
    _require_whole_images(ask)
    decider = Decider.of(ask.calibration, ask.decide)
    if decider.calibration and decider.calibration.by_folder:
        raise SpgError(
            f"The calibration {decider.path} has thresholds for each folder, and a graph knows no "
            "folders. Calibrate without --by-folder, for each camera into a file of its own."
        )
    predictor, reading = ready(replace(ask, device="cpu"), console)[1:3]
    decider.require(judging_of(predictor, reading), [""])
    console.say(decider.says)
    decides = decider.calibration is not None or decider.how.by_hand
    limits: Limits | None = decider.limits("") if decides else None
    card = export(
        predictor,
        ask.out,
        formats,
        name=ask.detector.resolve().name,
        limits=limits,
        calibration=decider.calibration,
        say=console.say,
    )
    console.result(card.model_dump(mode="json"), _text(card, ask))
    return card


def _require_place(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / _CARD).is_file():
        raise SpgError(f"{out} holds other files than an export. Choose another OUT.")
    require_writable(out)


def _require_whole_images(ask: Ask) -> None:
    """Refuse a bank of images in tiles, letterboxed, cropped or ignored in part."""
    if ask.normals is None or not is_bank(ask.normals.path):
        return
    record = FittedBank.load(ask.normals.path).record
    if record.fit != "squash" or record.backbone.tiles or record.ignored:
        raise SpgError(
            f"The bank {ask.normals.path} is of images in tiles, letterboxed, cropped or ignored "
            "in part, and an exported graph takes whole images. Fit one without these options "
            "(`spg-pipe fit --normals`)."
        )


def _text(card: Card, ask: Ask) -> str:
    lines = []
    for form, each in card.agreement.items():
        lines.append(
            f"{form} and PyTorch: maps within {each.map:.1e}, scores within {each.score:.1e}, on "
            f"{each.images} made-up images"
        )
    total = sum(each.bytes for each in card.files.values()) / 1e6
    lines.append(f"Export → {ask.out} ({total:.1f} MB); card.md there says what it is")
    lines.append(f"Judge with: python {ask.out / 'run.py'} IMAGE...")
    return "\n".join(lines)
