"""The output folder of `predict`: lines that grow as images are done, and what is made of them.

A killed run goes on: the lines of the same images are copied as the new run comes to them. Another
run's result is removed, and nothing else of the folder, when the first image of the new one is
done.
"""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import Literal, NamedTuple, Self

from filelock import FileLock

from spg_pipe.artefacts.files import (
    clear_leftovers,
    link_below,
    require_writable,
    write_json,
    write_text,
)
from spg_pipe.artefacts.record import Record, read_record, write_record
from spg_pipe.datasets.walk import EXPLANATIONS, PICTURES, PREDICTIONS, REPORT, RUN, SCORES
from spg_pipe.errors import SpgError, naming
from spg_pipe.predict.coco import Shapes, coco_of
from spg_pipe.predict.items import Item
from spg_pipe.predict.lines import EARLIER, GrowingLines, lines_of
from spg_pipe.predict.result import Failure, Line, Result, parse_line
from spg_pipe.predict.shown import ENDINGS, PAGES, Shown, files_of
from spg_pipe.predict.table import results_of, write_table
from spg_pipe.store.claims import locked

COCO: dict[str, Shapes] = {"coco.json": "rle", "coco-polygons.json": "polygons"}
TABLES = (SCORES, EXPLANATIONS, *COCO)
"""What a run may make, besides its lines and pictures."""
PLANNED = ".pictures.jsonl"
"""Pictures that a run may have written without their line, while it goes."""


class Entry(NamedTuple):
    """What a run writes of an image."""

    item: Item
    result: Line
    text: str
    """Of predictions.jsonl: the result as a line."""
    why: str = ""
    """Of explanations.jsonl, if the scores are explained."""


def pictures_of(result: Line) -> set[str]:
    """Files of an image, relative to the output folder."""
    files = result.files.model_dump().values() if isinstance(result, Result) else ()
    return {str(file) for file in files if file}


class RunRecord(Record):
    """run.json: what made the lines beside it."""

    kind: Literal["predictions"] = "predictions"
    format: Literal[1] = 1
    identity: dict[str, str]
    """All that results depend on, besides the images: name → value or fingerprint."""
    tables: tuple[str, ...] = (SCORES,)
    """Files that the run makes, besides its lines and pictures."""
    facts: str = ""
    """What a person should know of the scores: protocol, rule, backbone, supervision."""
    licences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was noticed of the files."""
    finished: bool = False
    images: int = 0
    bad: int = 0
    """Of the images, those that could not be judged."""
    drawn: tuple[str, ...] = ()
    """Pictures that no line names: those of the highest scores."""


class ResultFolder:
    """A context in which a run's lines are written into `out`; `finish` makes the tables.

    Parameters
    ----------
    record : RunRecord
        Of a run that begins. If explanations.jsonl is among its `tables`, each line has its `why`.
    shown : Shown, optional
        Which images the page has; needed if `report` is among the `tables`.

    Raises
    ------
    SpgError
        If something else lies where the result is to be, or another process writes there.
    OSError
        If `out` cannot be written.
    """

    def __init__(self, out: Path, record: RunRecord, shown: Shown | None = None) -> None:
        self.out, self._record, self._shown = out, record, shown
        self.images = self.bad = 0
        self._drawn: set[str] = set()
        self._begun, self._planning = False, Lock()
        self._explained = EXPLANATIONS in record.tables

    def __enter__(self) -> Self:
        check_out(self.out, self._record.tables)
        self._lock: FileLock = locked(self.out / RUN)
        for name in (RUN, EARLIER, PLANNED, *TABLES):
            clear_leftovers(self.out / name)
        there = read_run(self.out)
        self._same = there is not None and there.identity == self._record.identity
        self._old_tables = set(there.tables if there else ())
        self._old_drawn = there.drawn if there else ()
        self._planned = _planned(self.out)
        self._stale = set(self._old_drawn) | self._planned
        reported = REPORT in self._old_tables
        self._stale |= set(PAGES) if reported else set()
        self._lines = GrowingLines(self.out, explained=self._explained)
        numbers: dict[str, int] = {}
        for number in range(len(self._lines)):
            with suppress(SpgError):  # what is no line of this version is made again
                result = parse_line(self._lines.earlier(number)[0])
                pictures = pictures_of(result) | (files_of(result.path) if reported else set())
                self._stale |= pictures
                if number < self._lines.new:
                    self._planned -= pictures
                if not pictures & self._planned:  # else a picture was perhaps half replaced
                    numbers.setdefault(result.path, number)
        self._lines.keep(numbers.values())
        self._numbers = {name: number for number, name in enumerate(numbers)}
        self._open = ExitStack()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
        self._lines.close()
        self._lock.release()

    def known(
        self, start: int, items: Sequence[Item], digests: Sequence[str | None]
    ) -> list[Entry] | None:
        """The earlier lines of a batch, if all are of the same images; see `judge_items`.

        Of several images also in the same places: their bits may depend on their batch.
        """
        entries = []
        for position, (item, digest) in enumerate(zip(items, digests, strict=True), start):
            number = self._numbers.get(item.name)
            if not self._same or number is None or (len(items) > 1 and number != position):
                return None
            line, why = self._lines.earlier(number)
            result = parse_line(line)
            if not isinstance(result, Result) or result.sha256 != digest:
                return None
            if result.group != item.group or (self._explained and not why):
                return None
            if not all(self._is_ours(file) for file in pictures_of(result) | self._missed(result)):
                return None
            entries.append(Entry(item, result, line, why))
        return entries

    def _missed(self, result: Result) -> set[str]:
        """Pictures that the page needs of an image."""
        if self._shown is None or not self._shown.wants(result.score):
            return set()
        return files_of(result.path, ENDINGS[: 3 if result.regions else 2])

    def add(self, entry: Entry) -> None:
        """Write an image's lines; its pictures are there already."""
        self.plan(())
        self._lines.add(entry.text, entry.why)
        if self._shown is not None and isinstance(entry.result, Result):
            gone = self._shown.add(entry.result.path, entry.result.score)
            self._remove(files_of(gone) if gone else ())
        self.images += 1
        self.bad += isinstance(entry.result, Failure)
        self._stale -= pictures_of(entry.result)

    def plan(self, files: Collection[str]) -> None:
        """Note pictures before they are written, relative to the folder; from any thread.

        The first call makes the folder this run's. A run that is killed before the line of a
        picture leaves this note of it.
        """
        with self._planning:
            if not self._begun:
                self._begin()
            self._begun = True
            if files:
                self._plans.write(json.dumps(list(files)).encode() + b"\n")
                self._plans.flush()

    def draw(self, files: Collection[str]) -> None:
        """The same of pictures that no line will name."""
        self._drawn |= set(files)
        self.plan(files)

    def _begin(self) -> None:
        record = self._record
        if self._same:
            first = {"tables": tuple(sorted({*self._record.tables, *self._old_tables}))}
            first["drawn"] = self._old_drawn
            record = record.model_copy(update=first)
        else:  # all of it before the record: no line may be taken for one of this run
            self._remove(self._stale)
            for name in self._old_tables.intersection(TABLES):
                (self.out / name).unlink(missing_ok=True)
            self._lines.remove()
            self._planned.clear()
        write_record(self.out / RUN, record)
        write_text(self.out / PLANNED, json.dumps(sorted(self._planned)))
        self._lines.begin()
        self._plans = self._open.enter_context((self.out / PLANNED).open("ab"))

    def finish(
        self, batch: Sequence[bool] | None = None, page: Callable[[], object] | None = None
    ) -> None:
        """All images are done: write the tables, remove what is left of earlier runs.

        `batch` says of each image whether it is anomalous if all are decided together; `page` is
        called when all but the record is there, and writes the page.
        """
        names = self._shown.names() if self._shown else set()
        kept = set(PAGES if self._shown else ()).union(*map(files_of, names))
        self._remove(self._stale - self._drawn - kept)
        self._lines.end()
        write_table(self.out, batch)
        for name, shapes in COCO.items():
            if name in self._record.tables:
                write_json(self.out / name, coco_of(results_of(self.out), shapes))
        for name in self._old_tables.intersection(TABLES) - set(self._record.tables):
            (self.out / name).unlink(missing_ok=True)
        if page:
            page()
        counts = {"finished": True, "images": self.images, "bad": self.bad}
        drawn = {"drawn": tuple(sorted(self._drawn))}
        write_record(self.out / RUN, self._record.model_copy(update=counts | drawn))
        (self.out / PLANNED).unlink(missing_ok=True)

    def _is_ours(self, file: str) -> bool:
        return (self.out / file).is_file() and link_below(self.out, file) is None

    def _remove(self, files: Collection[str]) -> None:
        """Pictures of earlier runs, and folders that are empty then; nothing behind a link."""
        for file in sorted(files):
            parts = PurePosixPath(file).parts
            if parts[0] not in PICTURES or ".." in parts or link_below(self.out, file):
                continue
            path = self.out / file
            if path.is_file():
                path.unlink()
            for folder in path.parents:
                if folder == self.out or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()


def _planned(out: Path) -> set[str]:
    """Pictures that a killed run may have written without their line."""
    files: set[str] = set()
    if (out / PLANNED).is_file():
        for line in lines_of(out / PLANNED):
            with suppress(ValueError):  # cut off by a kill, before anything was drawn
                files |= set(map(str, json.loads(line)))
    return files


def write_picture(out: Path, file: str, data: bytes) -> None:
    """Write a picture in place: an image counts as done only when its line is there.

    An `SpgError` if a link is in the way, an OSError if that is not possible.
    """
    path = out / file
    if link := link_below(out, file):
        raise SpgError(
            f"{link} is a link to {link.readlink()}; a picture would be written there. Remove the "
            "link, or choose another --out."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path, path):
        path.write_bytes(data)


def read_run(out: Path) -> RunRecord | None:
    """What made the lines in a folder; None if there is none, an `SpgError` if it is damaged."""
    if not (out / RUN).is_file():
        return None
    return read_record(out / RUN, RunRecord, "a result of predict", "spg-pipe predict")


def check_out(out: Path, tables: Collection[str] = (SCORES,)) -> None:
    """Refuse to write into what is not an earlier result: an `SpgError` names it.

    Also to replace `tables` that no earlier run made, or to follow links below `out`; and, with an
    OSError, an `out` that cannot be written. `out` need not exist.
    """
    advice = "Choose another --out, or move it away."
    if out.exists() and not out.is_dir():
        raise SpgError(f"{out} is a file; a folder is to be written there. {advice}")
    for name in (*PICTURES, *TABLES, PREDICTIONS, RUN, EARLIER, PLANNED, f".{RUN}.lock"):
        path, expected = out / name, "folder" if name in PICTURES else "file"
        if path.is_symlink():
            raise SpgError(
                f"{path} is a link to {path.readlink()}; a {expected} of the result would be "
                f"written there. {advice}"
            )
        if path.exists() and path.is_dir() != (expected == "folder"):
            found = "file" if expected == "folder" else "folder"
            raise SpgError(f"{path} is a {found}; a {expected} is to be written there. {advice}")
    there = read_run(out)
    made = set(there.tables) if there else set()
    replaced = set(tables) if there else {PREDICTIONS, *TABLES, *PICTURES}
    for name in sorted(replaced - made):
        if (out / name).exists():
            raise SpgError(
                f"{out / name} would be replaced, but is not part of a result of this version "
                f"of predict: no {RUN} in {out} names it. {advice}"
            )
    require_writable(out / RUN)
