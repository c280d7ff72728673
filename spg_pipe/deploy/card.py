"""What an exported detector says of itself: card.json, and the same for people in card.md."""

from typing import Literal

from spg_pipe.artefacts.files import versions
from spg_pipe.artefacts.record import Count, Name, Record
from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.decision.calibration import Calibration, Limits, Threshold
from spg_pipe.decision.rules import Published
from spg_pipe.deploy.check import Agreement
from spg_pipe.errors import one_line
from spg_pipe.metrics.tables import ZERO_SHOT
from spg_pipe.predict.predictor import Predictor


class FittedOn(Record):
    """What the detector, and perhaps a bank beside it, was made from."""

    auxiliary: Name
    """Name and split of the labelled set."""
    images: Count
    normals: Count = 0
    """Normal images of the target in the bank; 0: there is none."""
    supervision: Name
    """In words."""


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
    backbone: BackboneSpec
    """The detector's own, perhaps in bfloat16."""
    precision: Literal["float32"] = "float32"
    """In which the graphs compute, and `predict` that they were held to."""
    image_threshold: Threshold | None
    pixel_threshold: Threshold | None
    """Not in the graph: a map's pixel is anomalous above it."""
    calibration: Calibration | None
    """Where the thresholds are from; None: they were set by hand, or there are none."""
    licences: tuple[str, ...]
    agreement: dict[Name, Agreement]
    """Format → against `predict`, on made-up images."""
    files: dict[Name, FileCard]
    versions: dict[Name, Name]

    @property
    def valid_until(self) -> str:
        """The last day of the thresholds; empty if they have none."""
        return str((self.calibration and self.calibration.valid_until) or "")


def card_of(
    name: str, predictor: Predictor, limits: Limits | None, calibration: Calibration | None
) -> Card:
    """What is known before the files are there.

    `name` is that of the detector's folder; `limits` decide, and are from `calibration`.
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
        backbone=spec,
        image_threshold=limits.image if limits else None,
        pixel_threshold=limits.pixel if limits else None,
        calibration=calibration,
        licences=(spec.licence,) if predictor.alone else record.licences,
        agreement={},
        files={},
        versions=versions(),
    )


def facts_of(card: Card) -> dict[str, str]:
    """What an ONNX file says of itself in its metadata."""
    image, pixel = card.image_threshold, card.pixel_threshold
    return {
        "name": card.name,
        "detector": card.detector,
        "bank": card.bank or "",
        "exif": str(card.exif).lower(),
        "threshold": repr(image.value) if image else "",
        "threshold_says": image.says if image else "",
        "pixel_threshold": repr(pixel.value) if pixel else "",
        "valid_until": card.valid_until,
        "supervision": card.fitted_on.supervision,
        "licences": "\n".join(card.licences),
    }


def in_words(card: Card) -> str:
    """card.md."""
    decides = ", and `decision` (1,) bool, true if anomalous." if card.image_threshold else "."
    return "\n".join(
        [
            f"# {_escaped(card.name)}",
            "",
            "An anomaly detector, exported by spg-pipe. `python run.py IMAGE...` judges images, and"
            " needs `pip install onnxruntime pillow` and nothing else. The graph takes `image`, "
            "uint8 (1, H, W, 3), RGB, of any size, and gives `map` (H, W) float32 in [0, 1] and "
            f"`score` (1,) float32{decides} A score is not a probability, and scores of two "
            "detectors must not be compared.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {_escaped(what)} | {_escaped(said)} |" for what, said in _rows(card)),
        ]
    )


def _rows(card: Card) -> list[tuple[str, str]]:
    """Of card.md's table."""
    spec, fitted, made = card.backbone, card.fitted_on, card.calibration
    by = f"by {made.method}, made {made.made}" if made else "by hand"
    limits = {"anomalous score": card.image_threshold, "anomalous pixel": card.pixel_threshold}
    return [
        ("fitted on", f"{fitted.auxiliary}, {fitted.images:,} labelled images"),
        ("supervision", fitted.supervision),
        ("backbone", f"{spec.seen_at} ({spec.model}), {', '.join(spec.layers)}, {spec.norm}-norm"),
        ("precision of the graph", card.precision),
        ("weights", f"{spec.weights}, SHA-256 {spec.weights_sha256}"),
        ("rule", f"{card.rule}, protocol {card.protocol}, seed {card.seed}"),
        ("detector", card.detector),
        *[("bank", f"{card.bank}, {fitted.normals} normal images")] * bool(card.bank),
        *(
            (what, f"above {limit.value:.6g}, {by}: {limit.says}" if limit else "no threshold")
            for what, limit in limits.items()
        ),
        *[("holds until", card.valid_until)] * bool(card.valid_until),
        *(("licence", licence) for licence in card.licences),
        *(
            (
                f"{form} beside PyTorch",
                f"maps within {each.map:.1e}, scores within {each.score:.1e}, on {each.images} "
                "made-up images",
            )
            for form, each in card.agreement.items()
        ),
        *(
            (name, f"{each.bytes:,} bytes, SHA-256 {each.sha256}")
            for name, each in card.files.items()
        ),
        ("made with", ", ".join(" ".join(each) for each in card.versions.items())),
    ]


def _escaped(text: str) -> str:
    """Without what ends a cell or begins a tag in Markdown."""
    return one_line(text).replace("|", "\\|").replace("<", "\\<")
