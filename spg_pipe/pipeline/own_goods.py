"""`fit --normals`: a bank of a few normal images, fitted once and saved."""

from dataclasses import replace
from pathlib import Path

from spg_pipe.artefacts.files import require_writable
from spg_pipe.bank.few_shot import note_of_copies
from spg_pipe.bank.fitted import FittedBank, is_bank
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, one_line
from spg_pipe.images.notes import file_notes, look_at, peak_of
from spg_pipe.images.samples import white_of
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask
from spg_pipe.predict.normals import fit_normals, notes_of, read_normals
from spg_pipe.predict.predictor import load_predictor
from spg_pipe.recipe.machine import choose_device


def fit_goods(ask: Ask, console: Console) -> FittedBank:
    """Fit a bank to normal images and save it in `ask.out`; say what it says of them.

    They are shown to the backbone as those that are judged later, of which there are none here.

    An `SpgError` if `out` holds anything but a bank, the images make none, or the detector cannot
    be loaded.
    """
    if ask.normals is None:
        raise SpgError("Which images? Add --normals FOLDER.")
    if ask.out.exists() and any(ask.out.iterdir()) and not is_bank(ask.out):
        raise SpgError(f"{ask.out} holds other files than a bank. Choose another --out.")
    require_writable(ask.out)
    detector, device = Detector.load(ask.detector), choose_device(ask.device)
    alone = detector.record.rule.rule != "additive"
    manifest = read_normals(replace(ask.normals, alone=alone), detector)
    files = [(path, manifest.root / path) for path in manifest.table["path"]]
    seen = look_at(files, exif=manifest.exif)
    for note in dict.fromkeys([*notes_of(manifest), *file_notes(seen, peak := peak_of(seen))]):
        console.say(f"Note: {note}")
    predictor = load_predictor(detector, ask.tiles, ask.weights, device, console.announce)
    manifest, params = replace(manifest, white=white_of(peak)), ask.normals.params
    with console.progress("normals") as update:
        bank = fit_normals(predictor, manifest, params, ask.viewing, progress=update)
    bank.save(ask.out)
    if copies := bank.record.copies:
        console.say(note_of_copies(copies, len(manifest)))
    console.result(_content(bank, ask.out), _text(bank, ask.out))
    return bank


def _content(bank: FittedBank, out: Path) -> dict[str, object]:
    record = bank.record
    kept = {"detector", "supervision", "goods", "copies", "white", "fingerprint"}
    content = record.model_dump(mode="json", include=kept)
    weight = record.footing and record.footing.weight
    return {"bank": out, "backbone": record.backbone.seen_at, "weight": weight, **content}


def _text(bank: FittedBank, out: Path) -> str:
    record = bank.record
    alone = record.footing is None
    ranked = sorted(record.goods, key=lambda good: -((good.alone if alone else good.fused) or 0.0))
    lines = ["Each by a bank of the others (leave-one-out):"]
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
        [*lines, f"Bank {record.fingerprint[:8]} of {len(record.goods)} images: {out}"]
    )
