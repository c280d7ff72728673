"""`export`: a detector, its bank and its thresholds as files that run without this project."""

from collections.abc import Sequence
from dataclasses import replace

from spg_pipe.artefacts.files import require_writable
from spg_pipe.bank.fitted import FittedBank, is_bank
from spg_pipe.deploy.card import Card
from spg_pipe.deploy.export import export, require_replaceable
from spg_pipe.deploy.formats import Format
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.decide import Decider
from spg_pipe.pipeline.predict import Ask, deciding
from spg_pipe.predict.items import Reading


def export_detector(ask: Ask, formats: Sequence[Format], console: Console) -> Card:
    """Load what judges and decides as `predict` does, and write it to `ask.out`.

    An `SpgError` if `ask.out` holds anything but an export, thresholds or a bank are of images that
    were shown otherwise, or a graph differs from `predict`.
    """
    require_replaceable(ask.out)
    require_writable(ask.out)
    _require_whole_images(ask)
    alike = replace(ask, device="cpu", exact=True)  # other runtimes compute in float32
    (_, predictor, reading, _), decider = deciding(alike, console)
    _require_one_graph(decider, reading)
    decides = decider.calibration is not None or decider.how.by_hand
    card = export(
        predictor,
        ask.out,
        formats,
        name=ask.detector.resolve().name,
        limits=decider.limits("") if decides else None,
        calibration=decider.calibration,
        say=console.say,
    )
    total = sum(each.bytes for each in card.files.values()) / 1e6
    console.result(
        card.model_dump(mode="json"),
        f"Export → {ask.out} ({total:.1f} MB); card.md there says what it is\n"
        f"Judge with: python {ask.out / 'run.py'} IMAGE...",
    )
    return card


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


def _require_one_graph(decider: Decider, reading: Reading) -> None:
    """Refuse thresholds for each folder, and those or a bank of 16-bit images."""
    if decider.calibration and decider.calibration.by_folder:
        raise SpgError(
            f"The calibration {decider.path} has thresholds for each folder, and a graph knows no "
            "folders. Calibrate without --by-folder, for each camera into a file of its own."
        )
    if reading.white is not None:
        raise SpgError(
            f"The calibration or the bank is of 16-bit images whose white is {reading.white}, and "
            "a graph takes images of 8 bits, where this white would have another level. Save "
            "the images in 8 bits and make both from those, or leave them out (--no-calibration)."
        )
