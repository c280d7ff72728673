"""`predict`: a detector on a person's own images; what is said meanwhile and at the end."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from spg_pipe.backbones.precision import computed_by
from spg_pipe.bank.few_shot import note_of_copies, note_of_known
from spg_pipe.datasets.walk import EXPLAINED, EXPLANATIONS, OVERLAYS, REPORT, SCORES
from spg_pipe.decision.calibration import place_beside
from spg_pipe.decision.maps import SIGMA
from spg_pipe.decision.rules import Published
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, counted, one_line
from spg_pipe.images.decoding import pixel_limit
from spg_pipe.images.files import content_ids
from spg_pipe.images.notes import file_notes, look_at, peak_of
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.decide import Decider, HowToDecide, judging_of
from spg_pipe.pipeline.own_page import OwnPage
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Items, Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.normals import (
    NormalFolder,
    fit_normals,
    load_bank,
    notes_of,
    read_normals,
    white_with,
)
from spg_pipe.predict.predictor import Predictor, load_predictor, require_guides
from spg_pipe.predict.ranking import RANKED, Summary, one_sided
from spg_pipe.predict.result import Failure, Result
from spg_pipe.predict.run import COCO, Entry, ResultFolder, RunRecord, check_out
from spg_pipe.predict.shown import Shown
from spg_pipe.predict.video import frames_of, is_video
from spg_pipe.predict.view import Viewing
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import BankParams


@dataclass(frozen=True)
class Ask:
    """Images to be judged, and by what."""

    detector: Path
    sources: Sequence[str]
    """See `find_items`."""
    out: Path
    weights: Path | None = None
    """A file of the backbone's weights."""
    device: str = "auto"
    exact: bool = False
    """See `load_predictor`."""
    tiles: Sequence[int] = ()
    """See `load_predictor`."""
    viewing: Viewing = field(default_factory=Viewing)
    """How images are shown to the backbone, and what of them is ignored."""
    normals: NormalFolder | None = None
    """A few normal images of the target: few-shot."""
    every: int = 1
    """Judge only every so many images or frames, from the first on."""
    limit: int | None = None
    """Judge at most so many."""
    overlays: int | None = None
    """Draw heat maps only of so many images, those with the highest scores; None: of all."""
    maps: bool = False
    """Write raw maps."""
    masks: bool = False
    """Write what is above the pixel threshold."""
    coco: bool = False
    """Write the regions as COCO JSON."""
    report: bool = False
    """Make a page of the results."""
    explained: bool = False
    """Also write why each image has its score."""
    pictures: int | None = None
    """Of explanations, as `overlays`."""
    atoms: int | None = None
    """List only so many contributions an image in explanations; None: all."""
    strict: bool = False
    """Stop at the first image that cannot be judged."""
    decide: HowToDecide | None = None
    """None: nothing is decided."""
    white: int | None = None
    """Of 16-bit images that do not say it; None: the images tell it together."""

    @property
    def alone(self) -> bool:
        """Whether normal images judge without the guides."""
        return self.normals is not None and self.normals.alone

    @property
    def tables(self) -> tuple[str, ...]:
        """Files that are written besides lines and pictures."""
        return (
            SCORES,
            *[EXPLANATIONS] * self.explained,
            *(COCO if self.coco else ()),
            *[REPORT] * self.report,
        )

    @property
    def calibration(self) -> Path:
        """Where its thresholds lie unless it is said: beside the bank or images of `normals`, else
        beside the detector."""
        return place_beside(self.normals.path if self.normals else self.detector)

    @property
    def again(self) -> str:
        """The options by which other images are judged and shown alike, as a shell reads them."""
        normals, view = self.normals, self.viewing
        words = ["--tiles", ",".join(map(str, self.tiles))] if self.tiles else []
        words += ["--weights", str(self.weights)] if self.weights else []
        words += ["--normals", str(normals.path)] if normals else []
        words += ["--bank", "alone"] if self.alone else []
        for name, value in normals.params if normals else ():
            changed = value != getattr(BankParams(), name)
            words += ["--set", f"bank.{name}={value}"] if changed else []
        words += ["--ignore", str(view.ignore)] if view.ignore else []
        words += ["--blank"] if view.blank else []
        words += [f"--{view.fit}"] if view.fit != "squash" else []
        return "".join(f" {shlex.quote(word)}" for word in words)


class Ready(NamedTuple):
    """What `ready` found."""

    items: Items
    predictor: Predictor
    reading: Reading
    record: RunRecord


def predict_images(
    ask: Ask, console: Console, listener: Callable[[Entry], None] = lambda _: None
) -> Summary:
    """Read the images and what judges them, judge, write the results.

    `listener` is given each image's lines as they are done. An `SpgError` if no image at all could
    be judged, or one and `ask.strict`.
    """
    if ask.explained:
        require_guides(alone=ask.alone)
    check_out(ask.out, ask.tables)
    if ask.out.resolve() == Path(ask.detector).resolve():
        raise SpgError(f"--out {ask.out} is the detector's folder. Choose a folder of its own.")
    (items, predictor, reading, record), decider = deciding(ask, console)
    drawn = max(ask.overlays or 0, ask.pictures or 0)
    summary = Summary(max(RANKED, drawn), drawn > 0)
    shown = Shown() if ask.report else None
    with ResultFolder(ask.out, record, shown) as folder, console.progress("predict") as update:
        page = _page(ask, items.said, predictor, decider, folder, shown) if shown else None
        how = Finish(
            predictor,
            ask.out,
            folder.plan,
            decider.limits,
            overlays=ask.overlays is None,
            maps=ask.maps,
            masks=ask.masks,
            explained=ask.pictures is None,
            atoms=ask.atoms,
            also=page.draw if page else None,
        )
        judged = partial(judge_items, predictor, how=reading, explained=ask.explained)
        then = partial(finish, how=how)
        for entry in judged(items, then=then, known=folder.known, live=items.live):
            folder.add(entry)
            summary.add(entry.item, entry.result)
            listener(entry)
            score = entry.result.score if isinstance(entry.result, Result) else None
            if decider.warns(entry.item.group, score):
                console.announce(decider.warning(entry.item.name))
            if isinstance(entry.result, Failure):
                if ask.strict:
                    raise SpgError(entry.result.error)
                console.say(f"Left out: {one_line(entry.result.error)}")
            update(summary.images, items.count)
        if not summary.scores:
            raise SpgError(f"None of {counted(summary.images, 'image')} could be judged.")
        _draw_highest(ask, how, summary, folder, judged)
        folder.finish(decider.batch(), page.write if page else None)
    console.text("\n".join([*_said(ask, summary, predictor, decider, console), record.facts]))
    return summary


def _page(
    ask: Ask, said: str, predictor: Predictor, decider: Decider, folder: ResultFolder, shown: Shown
) -> OwnPage:
    """The page of a run that goes on; `said` are its images in words."""
    first = f"Images of {said}, judged by the detector {ask.detector.name}."
    notes = (first, decider.says, _facts(predictor, ask.viewing))
    return OwnPage(folder, shown, predictor.shown, decider.limits, notes)


def _said(
    ask: Ask, summary: Summary, predictor: Predictor, decider: Decider, console: Console
) -> list[str]:
    """The last words of a run, after notes on its images."""
    if ask.report:
        console.say(f"Page: {ask.out / REPORT / 'index.html'}")
    if summary.known:
        console.say(note_of_known(summary.known, len(summary.scores), "whatever they show."))
    decided = decider.calibration is not None or decider.how.by_hand
    zero = predictor.log_odds and predictor.bank is None and not decided
    if note := one_sided(summary.scores) if zero else "":
        console.say(f"Note: {note}")
    text = summary.text(ask.out, predictor.goods, ranks=bool(note))
    return [text, *decider.counts()]


def deciding(ask: Ask, console: Console) -> tuple[Ready, Decider]:
    """What judges, and what decides by its scores; an `SpgError` if they do not fit."""
    decider = Decider.of(ask.calibration, ask.decide)
    made = decider.calibration  # white: a run of few images cannot tell it
    prepared = ready(replace(ask, white=made.judging.white if made else None), console)
    groups = [item.group for item in prepared.items.listed]
    decider.require(judging_of(prepared.predictor, prepared.reading), groups)
    if ask.decide is not None:
        console.say(decider.says)
    identity = prepared.record.identity | decider.identity
    record = prepared.record.model_copy(update={"identity": identity})
    return prepared._replace(record=record), decider


def _draw_highest(
    ask: Ask, how: Finish, summary: Summary, folder: ResultFolder, judged: Callable[..., Any]
) -> None:
    """The pictures of the highest scores alone, which are known at the end."""
    kinds = {OVERLAYS: ask.overlays, EXPLAINED: ask.pictures if ask.explained else 0}
    for kind, most in kinds.items():
        items = [top.item for top in summary.top(most or 0) if top.item]
        whose = (how.predictor, how.out, folder.draw, how.limits)
        only = Finish(*whose, overlays=kind == OVERLAYS, explained=kind == EXPLAINED)
        for _ in judged(items, then=partial(finish, how=only)):
            pass  # drawn


def ready(ask: Ask, console: Console) -> Ready:
    """Find the images, load what judges them, and say what is to be said of both."""
    pixel_limit()  # refuses a wrong setting once, not for each image
    detector = Detector.load(ask.detector)
    exif = detector.record.protocol.exif_of_own_images
    items = _items(ask)
    normals, device = ask.normals, choose_device(ask.device)
    saved = load_bank(normals, detector, ask.viewing, device=device) if normals else None
    manifest = read_normals(normals, detector) if normals and saved is None else None
    files = [(item.name, item.path) for item in items.listed if item.path]
    if manifest:  # one set, so that both are read alike
        files += [(str(path), path) for path in map(manifest.image_path, range(len(manifest)))]
    seen = look_at(files, exif=exif)
    known = saved.record.white if saved else None
    white = white_with(ask.white if known is None else known, peak := peak_of(seen))
    of_normals = notes_of(manifest) if manifest else []
    notes = tuple(dict.fromkeys([*items.notes, *of_normals, *file_notes(seen, peak)]))
    for note in notes:
        console.say(f"Note: {note}")
    predictor = load_predictor(
        detector, ask.tiles, ask.weights, device, console.announce, exact=ask.exact
    )
    # A bank alone uses the backbone and no more of a detector.
    licences = (predictor.backbone.spec.licence,) if ask.alone else detector.record.licences
    what = "the backbone's weights" if ask.alone else "what this detector was made from"
    console.say(f"Licences of {what}:")
    for licence in licences:
        console.say(one_line(f"  {licence}"))
    if detector.record.painted_on and not ask.alone and items.listed:
        contents = content_ids(item.path for item in items.listed if item.path)
        if note := detector.own_images_note(items.said, contents):
            console.say(note)
    if normals and saved:
        predictor = replace(predictor, bank=saved, alone=normals.alone)
    elif normals and manifest:
        manifest = replace(manifest, white=white)
        with console.progress("normals") as update:
            bank = fit_normals(predictor, manifest, normals.params, ask.viewing, progress=update)
        predictor = replace(predictor, bank=bank, alone=normals.alone)
        if copies := bank.record.copies:
            console.say(note_of_copies(copies, len(manifest)))
    reading = Reading(exif, white, strict_white=items.live, viewing=ask.viewing)
    record = RunRecord(
        identity=_identity(ask, predictor, reading),
        tables=ask.tables,
        facts=_facts(predictor, ask.viewing),
        licences=licences,
        notes=notes,
    )
    return Ready(items, predictor, reading, record)


def _items(ask: Ask) -> Items:
    """The images of a run, or the frames of a video."""
    if any(map(is_video, ask.sources)):
        if len(ask.sources) > 1:
            raise SpgError("A video or a camera is judged alone: give one source.")
        (source,) = ask.sources
        return Items(Path(source).name, coming=islice(frames_of(source, ask.every), ask.limit))
    items = find_items(ask.sources, ask.out)
    shown = tuple(i for i in items.listed if not (i.path and ask.viewing.is_mask(i.path)))
    items = replace(items, listed=shown)
    chosen = slice(0, None if ask.limit is None else ask.limit * ask.every, ask.every)
    if items.coming is None:
        return replace(items, listed=items.listed[chosen])
    return replace(items, coming=islice(items.coming, chosen.start, chosen.stop, chosen.step))


def _identity(ask: Ask, predictor: Predictor, reading: Reading) -> dict[str, str]:
    judging = judging_of(predictor, reading)
    computed = computed_by(predictor.backbone.spec.precision, predictor.device)
    return {name: str(value or "") for name, value in judging} | {
        **({"computed": computed} if computed else {}),
        "weights": predictor.backbone.spec.weights_sha256,
        "device": predictor.device.partition(":")[0],
        "spg-pipe": metadata.version("spg-pipe"),
        "torch": metadata.version("torch"),
        "pictures": f"{ask.overlays} {ask.maps} {ask.masks}",
        "explained": f"{ask.pictures} {ask.atoms}" if ask.explained else "",
    }


def _facts(predictor: Predictor, viewing: Viewing) -> str:
    """What all scores depend on: of the detector what was used of it."""
    record, spec = predictor.detector.record, predictor.backbone.spec
    rule: str = record.rule.image_score if isinstance(record.rule, Published) else "additive"
    if predictor.bank:
        weight = predictor.bank.record.footing and predictor.bank.record.footing.weight
        rule = "k-NN bank alone" if predictor.alone else f"{rule} + {weight:.3g} · k-NN bank"
    facts = (
        f"protocol {record.protocol.name}, σ {SIGMA:g}, image score {rule}, "
        f"{spec.seen_at} layers {'+'.join(spec.layers)} ({spec.norm}-norm)"
    )
    facts += "" if viewing.fit == "squash" else f", {viewing.fit}"
    facts += ", a part ignored" if viewing.ignore else ""
    if not predictor.alone:
        facts += f", seed {record.seed}, detector {record.fingerprint[:8]}"
    return f"{facts}; {predictor.supervision}" if predictor.supervision else facts
