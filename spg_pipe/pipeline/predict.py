"""`predict`: a detector on a person's own images; what is said meanwhile and at the end."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from spg_pipe.bank.few_shot import note_of_copies, note_of_known
from spg_pipe.datasets.contents import content_ids
from spg_pipe.datasets.layouts.folder import MASK_FOLDERS
from spg_pipe.decision.maps import SIGMA
from spg_pipe.decision.rules import Published
from spg_pipe.detector.model import Detector
from spg_pipe.guides.model import TAU
from spg_pipe.pipeline.console import Console
from spg_pipe.predict.files import SCORES, check_out
from spg_pipe.predict.images import read_images
from spg_pipe.predict.judge import HEADER, Prediction, Row, as_row, judge_images
from spg_pipe.predict.normals import NormalFolder, read_normals, with_normals
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.predict.results import write_results
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import BankParams


class Outcome(BaseModel):
    """The predictions, and what all of them depend on: of the detector what was used of it."""

    model_config = ConfigDict(frozen=True)
    detector: Path
    protocol: str
    sigma: float
    image_score: str
    backbone: str
    bank: BankParams | None
    supervision: str | None
    """None for a zero-shot detector that learnt from labels."""
    fingerprint: str | None
    """Of the detector, as what follows: None where a bank judges alone."""
    tau: float | None
    """Of the published rule's probabilities; the additive rule has none."""
    guides: str | None
    seed: int | None
    licences: tuple[str, ...]
    out: Path
    predictions: tuple[Row, ...]

    def content(self) -> dict[str, object]:
        """For `--json`; a fact that there is not is left out."""
        return self.model_dump(mode="json", exclude_none=True)

    def text(self) -> str:
        """For people: the highest scores first."""
        ranked = sorted(self.predictions, key=lambda row: -float(row["score"]))
        facts = (
            f"protocol {self.protocol}, σ {self.sigma:g}, image score {self.image_score}, "
            f"{self.backbone}"
        )
        if self.fingerprint:
            facts += f", seed {self.seed}, detector {self.fingerprint[:8]}"
        if self.supervision:
            facts += f"; {self.supervision}"
        scores = [f"{row['score']:.4f}  {row['path']}" for row in ranked]
        return "\n".join([*scores, facts, f"{len(ranked)} images → {self.out / SCORES}"])


def predict_folder(
    detector_path: Path,
    source: Path,
    out: Path,
    *,
    weights: Path | None,
    device: str,
    console: Console,
    tiles: Sequence[int] = (),
    normals: NormalFolder | None = None,
) -> Outcome:
    """Read the images and what judges them, judge, write the results.

    Parameters
    ----------
    tiles : sequence of int
        See `load_predictor`.
    normals : NormalFolder, optional
        A few normal images of the target: few-shot.
    """
    detector = Detector.load(detector_path)
    images = read_images(source, out)
    check_out(out, images.overlays, HEADER)
    manifest = read_normals(normals, detector) if normals else None
    predictor = load_predictor(detector, tiles, weights, choose_device(device))
    console.say("Licences of what this detector was made from:")
    for licence in detector.record.licences:
        console.say(f"  {licence}")
    painted = detector.record.painted_on and not (normals and normals.alone)
    contents = content_ids(images.paths) if painted else set()
    if note := detector.own_images_note(str(source), contents):
        console.say(note)
    if normals and manifest:
        with console.progress("normals") as update:
            predictor = with_normals(predictor, manifest, normals, progress=update)
        if predictor.bank and (copies := predictor.bank.copies):
            console.say(note_of_copies(copies, len(manifest)))
    with console.progress("predict") as update:
        judged = judge_images(predictor, images, progress=update)
        predictions = write_results(judged, images, out, predictor.shown)
    if images.masks:
        folders = ", ".join(MASK_FOLDERS)
        console.say(f"Note: {images.masks} files in folders of masks ({folders}) left out.")
    if known := [row.path for row in predictions if row.among_normals]:
        console.say(note_of_known(known, len(predictions), "whatever they show."))
    return _outcome(predictor, detector_path, out, predictions)


def _outcome(
    predictor: Predictor, detector_path: Path, out: Path, predictions: Sequence[Prediction]
) -> Outcome:
    detector, spec, bank = predictor.detector, predictor.backbone.spec, predictor.bank
    record = detector.record
    rule: str = record.rule.image_score if isinstance(record.rule, Published) else "additive"
    if bank:
        rule = "k-NN bank alone" if predictor.alone else f"{rule} + k-NN bank"
    used = not predictor.alone
    return Outcome(
        detector=detector_path,
        protocol=record.protocol.name,
        sigma=SIGMA,
        image_score=rule,
        backbone=f"{spec.seen_at} layers {'+'.join(spec.layers)} ({spec.norm}-norm)",
        bank=bank.params if bank else None,
        supervision=predictor.supervision or None,
        fingerprint=detector.fingerprint if used else None,
        tau=TAU if used and isinstance(record.rule, Published) else None,
        guides=record.guides.kind if used else None,
        seed=record.seed if used else None,
        licences=record.licences,
        out=out,
        predictions=tuple(as_row(prediction) for prediction in predictions),
    )
