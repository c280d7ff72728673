"""`predict`: a detector on a person's own images; what is said meanwhile and at the end."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from spg_pipe.bank.few_shot import note_of_copies, note_of_known
from spg_pipe.datasets.walk import EXPLAINED, OVERLAYS, SCORES
from spg_pipe.decision.maps import SIGMA
from spg_pipe.decision.rules import Published
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, counted, one_line
from spg_pipe.images.files import content_ids
from spg_pipe.images.notes import file_notes, look_at, peak_of
from spg_pipe.images.samples import white_of
from spg_pipe.pipeline.console import Console
from spg_pipe.predict.finish import Finish, finish, picture_path
from spg_pipe.predict.items import Item, Items, Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.normals import (
    NormalFolder,
    fit_normals,
    load_bank,
    read_normals,
    white_with,
)
from spg_pipe.predict.predictor import Predictor, load_predictor, require_guides
from spg_pipe.predict.ranking import Ranked, one_sided, ranking
from spg_pipe.predict.result import Failure, Line, Result
from spg_pipe.predict.run import Entry, ResultFolder, RunRecord, check_out
from spg_pipe.predict.video import frames_of, is_video
from spg_pipe.recipe.machine import choose_device

RANKED = 20
"""Images that are named at the end, those with the highest scores."""
_OF_NORMALS = (
    "left out",
    ", ignored",
    "taken for images",
    "mask by the",
    "masks by the",
    "there are:",
)
"""In the notes on normal images that matter for a bank."""


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
    tiles: Sequence[int] = ()
    """See `load_predictor`."""
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
    explained: bool = False
    """Also write why each image has its score."""
    pictures: int | None = None
    """Of explanations, as `overlays`."""
    atoms: int | None = None
    """List only so many contributions an image in explanations; None: all."""
    strict: bool = False
    """Stop at the first image that cannot be judged."""

    @property
    def alone(self) -> bool:
        """Whether normal images judge without the guides."""
        return self.normals is not None and self.normals.alone


class Ready(NamedTuple):
    """What `ready` found."""

    items: Items
    predictor: Predictor
    reading: Reading
    record: RunRecord


class Top(NamedTuple):
    """An image with one of the highest scores; of equal ones the first is the higher."""

    score: float
    before: int
    item: Item
    result: Result


@dataclass
class Summary:
    """What is said at the end, kept while images go by."""

    keep: int = RANKED
    """So many of the highest scores."""
    images: int = 0
    bad: int = 0
    known: list[str] = field(default_factory=list)
    """Images that are normal ones of the bank."""
    scores: list[float] = field(default_factory=list)
    _highest: list[Top] = field(default_factory=list)

    def add(self, item: Item, result: Line) -> None:
        """Count an image."""
        self.images += 1
        if isinstance(result, Failure):
            self.bad += 1
            return
        if result.among_normals:
            self.known.append(result.path)
        self.scores.append(result.score)
        heapq.heappush(self._highest, Top(result.score, -self.images, item, result))
        if len(self._highest) > self.keep:
            heapq.heappop(self._highest)

    def top(self, most: int) -> list[Top]:
        """From the highest score down."""
        return sorted(self._highest, reverse=True)[:most]

    def text(self, out: Path, goods: int) -> str:
        """The ranking, and how many there are; `goods` as for `ranking`."""
        highest = [
            Ranked(result.path, result.score, result.deviation, result.normals_above)
            for _, _, _, result in self.top(RANKED)
        ]
        ranked = ranking(highest, self.scores, goods)
        if more := len(self.scores) - len(ranked):
            ranked.append(f"… and {more:,} more in {out / SCORES}")
        bad = f", {counted(self.bad, 'bad file')} left out" if self.bad else ""
        judged = f"{counted(len(self.scores), 'image')} judged{bad} → {out / SCORES}"
        return "\n".join([*ranked, judged])


def predict_images(
    ask: Ask, console: Console, listener: Callable[[Entry], None] = lambda _: None
) -> Summary:
    """Read the images and what judges them, judge, write the results.

    Parameters
    ----------
    listener : callable
        Is given each image's lines as they are done.

    Raises
    ------
    SpgError
        If no image at all could be judged, or one and `ask.strict`.
    """
    if ask.explained:
        require_guides(alone=ask.alone)
    check_out(ask.out)
    items, predictor, reading, record = ready(ask, console)
    summary = Summary(max(RANKED, ask.overlays or 0, ask.pictures or 0))
    with (
        ResultFolder(ask.out, record, explained=ask.explained) as folder,
        console.progress("predict") as update,
    ):
        how = Finish(
            predictor,
            ask.out,
            folder.begin,
            overlays=ask.overlays is None,
            maps=ask.maps,
            masks=ask.masks,
            explained=ask.pictures is None,
            atoms=ask.atoms,
        )
        judged = partial(judge_items, predictor, how=reading, explained=ask.explained)
        then = partial(finish, how=how)
        for entry in judged(items, then=then, known=folder.known, live=items.live):
            folder.add(entry)
            summary.add(entry.item, entry.result)
            listener(entry)
            if isinstance(entry.result, Failure):
                if ask.strict:
                    raise SpgError(entry.result.error)
                console.say(f"Left out: {one_line(entry.result.error)}")
            update(summary.images, items.count)
        if not summary.scores:
            raise SpgError(f"None of {counted(summary.images, 'image')} could be judged.")
        _draw_highest(ask, how, summary, folder, judged)
        folder.finish(coco=ask.coco)
    if summary.known:
        console.say(note_of_known(summary.known, len(summary.scores), "whatever they show."))
    zero = predictor.bank is None and predictor.log_odds
    if zero and (note := one_sided(summary.scores)):
        console.say(f"Note: {note}")
    console.text(f"{summary.text(ask.out, predictor.goods)}\n{record.facts}")
    return summary


def _draw_highest(
    ask: Ask, how: Finish, summary: Summary, folder: ResultFolder, judged: Callable[..., Any]
) -> None:
    """The pictures of the highest scores alone, which are known at the end."""
    kinds = {OVERLAYS: ask.overlays, EXPLAINED: ask.pictures if ask.explained else 0}
    chosen = {kind: [top.item for top in summary.top(most or 0)] for kind, most in kinds.items()}
    folder.draw([picture_path(each.name, kind) for kind in kinds for each in chosen[kind]])
    for kind, items in chosen.items():
        only = Finish(
            how.predictor,
            how.out,
            limits=how.limits,
            overlays=kind == OVERLAYS,
            explained=kind == EXPLAINED,
        )
        for _ in judged(items, then=partial(finish, how=only)):
            pass  # drawn


def ready(ask: Ask, console: Console) -> Ready:
    """Find the images, load what judges them, and say what is to be said of both."""
    detector = Detector.load(ask.detector)
    exif = detector.record.protocol.exif_of_own_images
    items = _items(ask)
    normals, device = ask.normals, choose_device(ask.device)
    saved = load_bank(normals, detector, device=device) if normals else None
    manifest = read_normals(normals, detector) if normals and saved is None else None
    files = [(item.name, item.path) for item in items.listed if item.path]
    if manifest:  # one set, so that both are read alike
        files += [(str(path), path) for path in map(manifest.image_path, range(len(manifest)))]
    seen = look_at(files, exif=exif)
    white = white_of(peak := peak_of(seen))
    white = white_with(saved, white) if saved else white
    of_normals = [
        f"--normals: {note}"
        for note in (manifest.notes if manifest else ())
        if any(words in note for words in _OF_NORMALS)
    ]
    notes = tuple(dict.fromkeys([*items.notes, *of_normals, *file_notes(seen, peak)]))
    for note in notes:
        console.say(f"Note: {note}")
    predictor = load_predictor(detector, ask.tiles, ask.weights, device, console.announce)
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
            bank = fit_normals(predictor, manifest, normals.params, progress=update)
        predictor = replace(predictor, bank=bank, alone=normals.alone)
        if copies := bank.record.copies:
            console.say(note_of_copies(copies, len(manifest)))
    record = RunRecord(
        identity=_identity(ask, predictor, white),
        facts=_facts(predictor),
        licences=licences,
        notes=notes,
    )
    reading = Reading(exif=exif, white=white, strict_white=items.live)
    return Ready(items, predictor, reading, record)


def _items(ask: Ask) -> Items:
    """The images of a run, or the frames of a video."""
    if any(map(is_video, ask.sources)):
        if len(ask.sources) > 1:
            raise SpgError("A video or a camera is judged alone: give one source.")
        (source,) = ask.sources
        return Items(Path(source).name, coming=islice(frames_of(source, ask.every), ask.limit))
    items = find_items(ask.sources, ask.out)
    chosen = slice(0, None if ask.limit is None else ask.limit * ask.every, ask.every)
    if items.coming is None:
        return replace(items, listed=items.listed[chosen])
    return replace(items, coming=islice(items.coming, chosen.start, chosen.stop, chosen.step))


def _identity(ask: Ask, predictor: Predictor, white: int | None) -> dict[str, str]:
    spec = predictor.backbone.spec
    return {
        "detector": predictor.detector.fingerprint,
        "weights": spec.weights_sha256,
        "tiles": ",".join(map(str, spec.tiles.sides)) if spec.tiles else "",
        "white": str(white or ""),
        "bank": predictor.bank.record.fingerprint if predictor.bank else "",
        "alone": str(predictor.alone),
        "device": predictor.device.partition(":")[0],
        "spg-pipe": metadata.version("spg-pipe"),
        "torch": metadata.version("torch"),
        "pictures": f"{ask.overlays} {ask.maps} {ask.masks}",
        "explained": f"{ask.pictures} {ask.atoms}" if ask.explained else "",
    }


def _facts(predictor: Predictor) -> str:
    """What all scores depend on: of the detector what was used of it."""
    record, spec = predictor.detector.record, predictor.backbone.spec
    rule: str = record.rule.image_score if isinstance(record.rule, Published) else "additive"
    if predictor.bank:
        rule = "k-NN bank alone" if predictor.alone else f"{rule} + k-NN bank"
    facts = (
        f"protocol {record.protocol.name}, σ {SIGMA:g}, image score {rule}, "
        f"{spec.seen_at} layers {'+'.join(spec.layers)} ({spec.norm}-norm)"
    )
    if not predictor.alone:
        facts += f", seed {record.seed}, detector {record.fingerprint[:8]}"
    return f"{facts}; {predictor.supervision}" if predictor.supervision else facts
