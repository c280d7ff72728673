"""What an exported detector says of itself: card.json, and the same for people in card.md."""

from datetime import date
from typing import Literal

from spg_pipe.artefacts.files import versions
from spg_pipe.artefacts.record import Count, LayerName, Name, Record, Size
from spg_pipe.decision.calibration import Calibration, Limits, Method, Threshold
from spg_pipe.decision.rules import Published
from spg_pipe.metrics.tables import ZERO_SHOT
from spg_pipe.predict.predictor import Predictor


class BackboneCard(Record):
    """The frozen network."""

    alias: Name
    model: Name
    image_size: Size
    """S: images are squashed to S×S."""
    layers: tuple[LayerName, ...]
    norm: Name
    weights: Name
    weights_sha256: Name
    licence: str


class FittedOn(Record):
    """What the detector, and perhaps a bank beside it, was made from."""

    auxiliary: Name
    """Name and split of the labelled set."""
    images: Count
    normals: Count = 0
    """Normal images of the target in the bank; 0: there is none."""
    supervision: Name
    """In words."""


class ThresholdsCard(Record):
    """What decides."""

    image: Threshold | None
    pixel: Threshold | None
    """Not in the graph: a map's pixel is anomalous above it."""
    method: Method | None
    """Of the calibration; None: set by hand, or there are none."""
    calibration: Name
    """Its fingerprint."""
    made: date | None
    valid_until: date | None


class Agreed(Record):
    """How far a file's graph was from PyTorch, at most."""

    images: Count
    map: float
    score: float


class FileCard(Record):
    """A file of the folder."""

    bytes: Count
    sha256: Name


class Card(Record):
    """card.json of an export."""

    kind: Literal["export"] = "export"
    format: Literal[1] = 1
    name: Name
    """Of the detector's folder."""
    detector: Name
    """Fingerprint."""
    bank: Name | None
    """Fingerprint."""
    alone: bool
    """The bank judges without the guides."""
    seed: int
    protocol: Name
    rule: Name
    exif: bool
    """Images are turned as their EXIF orientation says."""
    fitted_on: FittedOn
    backbone: BackboneCard
    thresholds: ThresholdsCard
    licences: tuple[str, ...]
    agreement: dict[Name, Agreed]
    """Format → against `predict`, on made-up images."""
    files: dict[Name, FileCard]
    versions: dict[Name, Name]


def card_of(
    name: str, predictor: Predictor, limits: Limits | None, calibration: Calibration | None
) -> Card:
    """What is known before the files are there.

    Parameters
    ----------
    name : str
        Of the detector's folder.
    limits : Limits, optional
        What decides.
    calibration : Calibration, optional
        Where these are from.
    """
    record, spec, bank = predictor.detector.record, predictor.backbone.spec, predictor.bank
    rule: str = record.rule.image_score if isinstance(record.rule, Published) else "additive"
    if bank:
        rule = "k-NN bank alone" if predictor.alone else f"{rule} + k-NN bank"
    auxiliary = record.auxiliary
    return Card(
        name=name,
        detector=predictor.detector.fingerprint,
        bank=bank.record.fingerprint if bank else None,
        alone=predictor.alone,
        seed=record.seed,
        protocol=record.protocol.name,
        rule=rule,
        exif=record.protocol.exif_of_own_images,
        fitted_on=FittedOn(
            auxiliary=f"{auxiliary.dataset}/{auxiliary.split}",
            images=auxiliary.images,
            normals=bank.memory.images if bank else 0,
            supervision=predictor.supervision or ZERO_SHOT,
        ),
        backbone=BackboneCard(
            image_size=spec.preprocess.size,
            **{key: getattr(spec, key) for key in BackboneCard.model_fields if key != "image_size"},
        ),
        thresholds=ThresholdsCard(
            image=limits.image if limits else None,
            pixel=limits.pixel if limits else None,
            method=calibration.method if calibration else None,
            calibration=calibration.fingerprint if calibration else "",
            made=calibration.made if calibration else None,
            valid_until=calibration.valid_until if calibration else None,
        ),
        licences=(spec.licence,) if predictor.alone else record.licences,
        agreement={},
        files={},
        versions=versions(),
    )


def facts_of(card: Card) -> dict[str, str]:
    """What an ONNX file says of itself in its metadata."""
    limits = card.thresholds
    return {
        "name": card.name,
        "detector": card.detector,
        "bank": card.bank or "",
        "exif": str(card.exif).lower(),
        "threshold": repr(limits.image.value) if limits.image else "",
        "threshold_says": limits.image.says if limits.image else "",
        "pixel_threshold": repr(limits.pixel.value) if limits.pixel else "",
        "valid_until": str(limits.valid_until or ""),
        "supervision": card.fitted_on.supervision,
        "licences": "\n".join(card.licences),
    }


def in_words(card: Card) -> str:
    """card.md."""
    backbone, fitted, limits = card.backbone, card.fitted_on, card.thresholds
    by = "by hand" if limits.method is None else f"by {limits.method}, made {limits.made}"
    lines = [
        f"# {card.name}",
        "",
        "An anomaly detector, exported by spg-pipe. `python run.py IMAGE...` judges images, and",
        "needs `pip install onnxruntime pillow` and nothing else. The graph takes `image`, uint8",
        "(1, H, W, 3), RGB, of any size, and gives `map` (H, W) float32 in [0, 1] and `score` (1,)",
        "float32" + (", and `decision` (1,) bool, true if anomalous." if limits.image else "."),
        "A score is not a probability, and scores of two detectors must not be compared.",
        "",
        "| | |",
        "|---|---|",
        f"| fitted on | {fitted.auxiliary}, {fitted.images:,} labelled images |",
        f"| supervision | {fitted.supervision} |",
        f"| backbone | {backbone.alias} ({backbone.model}) at {backbone.image_size} px, layers "
        f"{', '.join(backbone.layers)}, {backbone.norm}-norm |",
        f"| weights | {backbone.weights}, SHA-256 {backbone.weights_sha256} |",
        f"| rule | {card.rule}, protocol {card.protocol}, seed {card.seed} |",
        f"| detector | {card.detector} |",
    ]
    lines += [f"| bank | {card.bank}, {fitted.normals} normal images |"] if card.bank else []
    for what, limit in (("score", limits.image), ("pixel", limits.pixel)):
        said = f"above {limit.value:.6g}, {by}: {limit.says}" if limit else "no threshold"
        lines.append(f"| anomalous {what} | {said} |")
    lines += [f"| holds until | {limits.valid_until} |"] if limits.valid_until else []
    lines += [f"| licence | {one} |" for one in card.licences]
    for name, each in card.agreement.items():
        lines.append(
            f"| {name} beside PyTorch | maps within {each.map:.1e}, scores within {each.score:.1e},"
            f" on {each.images} made-up images |"
        )
    lines += [
        f"| {name} | {each.bytes / 1e6:.1f} MB, SHA-256 {each.sha256} |"
        for name, each in card.files.items()
    ]
    told = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    return "\n".join([*lines, f"| made with | {told} |"])
