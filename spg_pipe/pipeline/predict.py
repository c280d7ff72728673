"""`predict`: a detector on a person's own images; what is said meanwhile and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from spg_pipe.bank.few_shot import KNOWN, note_of_copies, note_of_known
from spg_pipe.datasets.walk import EXPLANATIONS, SCORES
from spg_pipe.decision.maps import SIGMA
from spg_pipe.decision.rules import Published
from spg_pipe.detector.model import Detector
from spg_pipe.errors import one_line
from spg_pipe.guides.model import TAU
from spg_pipe.images.files import content_ids
from spg_pipe.images.notes import file_notes, look_at, peak_of
from spg_pipe.images.samples import white_of
from spg_pipe.pipeline.console import Console
from spg_pipe.predict.files import PREDICTIONS, Output
from spg_pipe.predict.images import Images, read_images
from spg_pipe.predict.judge import Prediction, as_row, judge_images, write_results
from spg_pipe.predict.normals import (
    NormalFolder,
    fit_normals,
    load_bank,
    read_normals,
    white_with,
)
from spg_pipe.predict.predictor import Predictor, load_predictor, require_guides
from spg_pipe.predict.ranking import Ranked, one_sided, ranking
from spg_pipe.recipe.machine import choose_device

_OF_NORMALS = (
    "left out",
    ", ignored",
    "taken for images",
    "mask by the",
    "masks by the",
    "there are:",
)
"""In the notes on normal images that matter for a bank."""


class Outcome(NamedTuple):
    """The predictions, and what all of them depend on: of the detector what was used of it."""

    content: dict[str, object]
    """For `--json`; a fact that there is not is left out: a bank alone uses no guides, and the
    additive rule no τ."""
    text: str
    """For people: the highest scores first."""


@dataclass(frozen=True)
class Ask:
    """Images to be judged, and by what."""

    detector: Path
    source: Path
    """An image or a folder."""
    out: Path
    weights: Path | None = None
    """A file of the backbone's weights."""
    device: str = "auto"
    tiles: Sequence[int] = ()
    """See `load_predictor`."""
    normals: NormalFolder | None = None
    """A few normal images of the target: few-shot."""

    @property
    def alone(self) -> bool:
        """Whether normal images judge without the guides."""
        return self.normals is not None and self.normals.alone


class Ready(NamedTuple):
    """What `ready` found."""

    images: Images
    predictor: Predictor
    white: int | None
    notes: list[str]


def predict_folder(ask: Ask, console: Console, *, explained: bool = False) -> Outcome:
    """Read the images and what judges them, judge, write the results.

    Parameters
    ----------
    explained : bool
        Also write why each image has its score.
    """
    if explained:
        require_guides(alone=ask.alone)
    images, predictor, white, notes = ready(ask, console, PREDICTIONS)
    with console.progress("predict") as update:
        judged = judge_images(predictor, images, white=white, explained=explained, progress=update)
        predictions = write_results(judged, images, ask.out, predictor.shown)
    if known := [prediction.path for prediction in predictions if prediction.parts.get(KNOWN)]:
        console.say(note_of_known(known, len(predictions), "whatever they show."))
    zero = predictor.bank is None and predictor.log_odds
    if zero and (note := one_sided([prediction.score for prediction in predictions])):
        console.say(f"Note: {note}")
    outcome = _outcome(predictor, ask.detector, ask.out, predictions)
    extra: dict[str, object] = {"notes": notes} if notes else {}
    if explained:
        extra["explanations"] = ask.out / EXPLANATIONS
    return outcome._replace(content=outcome.content | extra)


def ready(ask: Ask, console: Console, output: Output) -> Ready:
    """Find the images, load what judges them, and say what is to be said of both."""
    detector = Detector.load(ask.detector)
    images = read_images(ask.source, ask.out, output)
    normals = ask.normals
    device = choose_device(ask.device)
    saved = load_bank(normals, detector, device=device) if normals else None
    manifest = read_normals(normals, detector) if normals and saved is None else None
    files = [(images.name(path), path) for path in images.paths]
    if manifest:  # one set, so that both are read alike
        files += [(str(path), path) for path in map(manifest.image_path, range(len(manifest)))]
    seen = look_at(files, exif=detector.record.protocol.exif_of_own_images)
    white = white_of(peak := peak_of(seen))
    white = white_with(saved, white) if saved else white
    of_normals = [
        f"--normals: {note}"
        for note in (manifest.notes if manifest else ())
        if any(words in note for words in _OF_NORMALS)
    ]
    notes = list(dict.fromkeys([*images.notes, *of_normals, *file_notes(seen, peak)]))
    for note in notes:
        console.say(f"Note: {note}")
    predictor = load_predictor(detector, ask.tiles, ask.weights, device, console.announce)
    what = "the backbone's weights" if ask.alone else "what this detector was made from"
    console.say(f"Licences of {what}:")
    for licence in _licences(predictor, alone=ask.alone):
        console.say(one_line(f"  {licence}"))
    painted = detector.record.painted_on and not ask.alone
    if painted and (note := detector.own_images_note(str(ask.source), content_ids(images.paths))):
        console.say(note)
    if normals and saved:
        predictor = replace(predictor, bank=saved, alone=normals.alone)
    elif normals and manifest:
        manifest = replace(manifest, white=white)
        with console.progress("normals") as update:
            bank = fit_normals(predictor, manifest, normals.params, progress=update)
        predictor = replace(predictor, bank=bank, alone=normals.alone)
        if copies := bank.record.copies:
            console.say(note_of_copies(copies, len(manifest)))
    return Ready(images, predictor, white, notes)


def _ranked(prediction: Prediction) -> Ranked:
    deviation, above = (prediction.parts.get(name) for name in ("deviation", "normals_above"))
    return Ranked(
        prediction.path,
        prediction.score,
        None if deviation is None else float(deviation),
        None if above is None else int(above),
    )


def _licences(predictor: Predictor, *, alone: bool) -> tuple[str, ...]:
    """Of what scores are made from: a bank alone uses the backbone and no more of a detector."""
    return (predictor.backbone.spec.licence,) if alone else predictor.detector.record.licences


def _outcome(
    predictor: Predictor, detector_path: Path, out: Path, predictions: Sequence[Prediction]
) -> Outcome:
    record, spec, bank = predictor.detector.record, predictor.backbone.spec, predictor.bank
    published = record.rule if isinstance(record.rule, Published) else None
    rule: str = published.image_score if published else "additive"
    if bank:
        rule = "k-NN bank alone" if predictor.alone else f"{rule} + k-NN bank"
    backbone = f"{spec.seen_at} layers {'+'.join(spec.layers)} ({spec.norm}-norm)"
    content = {
        "detector": detector_path,
        "protocol": record.protocol.name,
        "sigma": SIGMA,
        "image_score": rule,
        "backbone": backbone,
        "bank": bank and bank.record.params.model_dump(mode="json"),
        "supervision": predictor.supervision or None,
        "licences": _licences(predictor, alone=predictor.alone),
        "out": out,
        "predictions": [as_row(prediction) for prediction in predictions],
    }
    facts = f"protocol {record.protocol.name}, σ {SIGMA:g}, image score {rule}, {backbone}"
    if not predictor.alone:
        content |= {
            "fingerprint": record.fingerprint,
            "tau": TAU if published else None,
            "guides": record.guides.kind,
            "seed": record.seed,
        }
        facts += f", seed {record.seed}, detector {record.fingerprint[:8]}"
    if predictor.supervision:
        facts += f"; {predictor.supervision}"
    lines = [_ranked(prediction) for prediction in predictions]
    ranked = ranking(lines, len(bank.record.scores(alone=predictor.alone)) if bank else 0)
    text = "\n".join([*ranked, facts, f"{len(predictions)} images → {out / SCORES}"])
    return Outcome({name: value for name, value in content.items() if value is not None}, text)
