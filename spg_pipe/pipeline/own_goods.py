"""`fit --normals`: a bank of a few normal images, fitted once and saved."""

from dataclasses import replace
from pathlib import Path

from spg_pipe.artefacts.files import require_writable
from spg_pipe.bank.fitted import FILES, FittedBank, is_bank
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, one_line
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, ready


def fit_goods(ask: Ask, console: Console) -> FittedBank:
    """Fit a bank to normal images and save it in `ask.out`; say what it says of them.

    They are shown to the backbone as those that are judged later, of which there are none here.

    An `SpgError` if `out` holds anything but a bank, the images make none, or the detector cannot
    be loaded.
    """
    normals = ask.normals
    if normals and is_bank(normals.path):
        raise SpgError(f"--normals {normals.path} is a bank already. Give a folder of images.")
    names = {each.name for each in ask.out.iterdir()} if ask.out.exists() else set()
    if names and (names - FILES or not is_bank(ask.out)):
        raise SpgError(f"{ask.out} holds other files than a bank. Choose another --out.")
    require_writable(ask.out)
    published = Detector.load(ask.detector).record.rule.rule == "published"
    normals = normals and replace(normals, alone=published)
    bank = ready(replace(ask, normals=normals), console).predictor.bank
    if bank is None:
        raise SpgError("A bank of which images? Give a folder of normal ones (--normals).")
    bank.save(ask.out)
    console.result(_content(bank, ask.out), _text(bank, ask))
    return bank


def _content(bank: FittedBank, out: Path) -> dict[str, object]:
    record = bank.record
    kept = {"detector", "supervision", "goods", "copies", "white", "fingerprint"}
    content = record.model_dump(mode="json", include=kept)
    weight = record.footing and record.footing.weight
    return {"bank": out, "backbone": record.backbone.seen_at, "weight": weight, **content}


def _text(bank: FittedBank, ask: Ask) -> str:
    record, shown = bank.record, replace(ask, normals=None).again
    alone = record.footing is None
    ranked = sorted(record.goods, key=lambda good: -((good.alone if alone else good.fused) or 0.0))
    lines = ["Each by a bank of the others (leave-one-out; fused: with the guides):"]
    lines.append("    alone  image" if alone else "    fused      alone  image")
    for good in ranked:
        scores = [score for score in (good.fused, good.alone) if score is not None]
        lines.append(one_line("  ".join([*(f"{score:9.4f}" for score in scores), good.path])))
    values = record.scores(alone=alone)
    if len(values) < 2:
        lines = ["Too few different images for scores of their own: give more."]
    else:
        mean, deviation = values.mean(), values.std(ddof=1)
        lines.append(f"mean {mean:.4f}, standard deviation {deviation:.4f}; {record.supervision}")
    if record.footing:
        lines.append(f"weight of the bank beside the guides {record.footing.weight:.4f}")
    return "\n".join(
        [
            *lines,
            f"Bank {record.fingerprint[:8]} of {len(record.goods)} images → {ask.out}",
            f"Judge with: spg-pipe predict {ask.detector} SOURCE --normals {ask.out}{shown}",
        ]
    )
