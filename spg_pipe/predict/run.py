"""The output folder of `predict`: lines that grow as images are done, and what is made of them.

A killed run goes on: the lines of the same images are copied as the new run comes to them. Another
run's result is removed, and nothing else of the folder, when the first image of the new one is
done.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import Literal, NamedTuple, Self

from filelock import FileLock

from spg_pipe.artefacts.files import clear_leftovers, require_writable, write_json
from spg_pipe.artefacts.record import Record, read_record, write_record
from spg_pipe.datasets.walk import EXPLANATIONS, PICTURES, PREDICTIONS, RUN, SCORES
from spg_pipe.errors import SpgError, naming
from spg_pipe.predict.coco import Shapes, coco_of
from spg_pipe.predict.items import Item
from spg_pipe.predict.lines import GrowingLines, lines_of
from spg_pipe.predict.result import Failure, Line, Result, parse_line, row_of
from spg_pipe.store.writer import locked

COCO: dict[str, Shapes] = {"coco.json": "rle", "coco-polygons.json": "polygons"}
FILES = (PREDICTIONS, SCORES, EXPLANATIONS, *COCO, RUN)
"""Of a result, besides its folders of pictures. The last one is the sign of a result."""


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
        Of a run that begins.
    explained : bool
        Each line has its `why`.

    Raises
    ------
    SpgError
        If something else lies where the result is to be, or another process writes there.
    OSError
        If `out` cannot be written.
    """

    def __init__(self, out: Path, record: RunRecord, *, explained: bool = False) -> None:
        self.out, self._record, self._explained = out, record, explained
        self.images = self.bad = 0
        self._pictures: set[str] = set()
        self._begun, self._beginning = False, Lock()

    def __enter__(self) -> Self:
        check_out(self.out)
        self._lock: FileLock = locked(self.out / RUN)
        for name in (RUN, *COCO):
            clear_leftovers(self.out / name)
        there = read_run(self.out)
        self._same = there is not None and there.identity == self._record.identity
        self._lines = GrowingLines(self.out / PREDICTIONS)
        self._whys = GrowingLines(self.out / EXPLANATIONS)
        self._places: dict[str, int] = {}
        self._stale = set(there.drawn if there else ())
        for number in range(len(self._lines)):
            with suppress(SpgError):  # what is no line of this version is made again
                result = parse_line(self._lines.earlier(number))
                self._places[result.path] = number
                self._stale |= pictures_of(result)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._whys.close()
        self._lock.release()

    def known(
        self, start: int, items: Sequence[Item], digests: Sequence[str | None]
    ) -> list[Entry] | None:
        """The earlier lines of a batch, if all are of the same images; see `judge_items`.

        Of several images also in the same places: their bits may depend on their batch.
        """
        found = []
        for number, (item, digest) in enumerate(zip(items, digests, strict=True), start):
            place = self._places.get(item.name)
            if not self._same or place is None or (len(items) > 1 and place != number):
                return None
            text, why = self._lines.earlier(place), self._whys.earlier(place)
            result = parse_line(text)
            if not isinstance(result, Result) or result.sha256 != digest:
                return None
            if self._explained and not why:
                return None
            if not all((self.out / file).is_file() for file in pictures_of(result)):
                return None
            found.append(Entry(item, result, text, why))
        return found

    def add(self, entry: Entry) -> None:
        """Write an image's lines; its pictures are there already."""
        self.begin()
        if self._explained:
            self._whys.add(entry.why)
        self._lines.add(entry.text)
        self.images += 1
        self.bad += isinstance(entry.result, Failure)
        self._pictures |= pictures_of(entry.result)

    def begin(self) -> None:
        """Before the first picture or line is written, and only once; from any thread.

        From then on the folder is this run's: pictures of a run that is killed before its first
        line must not look like somebody's.
        """
        with self._beginning:
            if not self._begun:
                self._begin()
            self._begun = True

    def _begin(self) -> None:
        if not self._same:
            self._remove(self._stale)
            for name in (SCORES, EXPLANATIONS, *COCO):
                (self.out / name).unlink(missing_ok=True)
        write_record(self.out / RUN, self._record)
        self._lines.begin(keep=self._same)
        if self._explained:
            self._whys.begin(keep=self._same)

    def draw(self, files: Sequence[Path]) -> None:
        """Note pictures before they are drawn that no line will name."""
        drawn = tuple(file.as_posix() for file in files)
        self._pictures |= set(drawn)
        self._record = self._record.model_copy(update={"drawn": drawn})
        write_record(self.out / RUN, self._record)

    def finish(self, batch: Sequence[bool] | None = None, *, coco: bool = False) -> None:
        """All images are done: write the tables, remove what is left of earlier runs.

        `batch` says of each image whether it is anomalous if all are decided together.
        """
        self._lines.end()
        self._whys.end()
        self._remove(self._stale - self._pictures)
        write_table(self.out, batch)
        for name, shapes in COCO.items():
            if coco:
                write_json(self.out / name, coco_of(results_of(self.out), shapes))
            else:
                (self.out / name).unlink(missing_ok=True)
        counts = {"finished": True, "images": self.images, "bad": self.bad}
        write_record(self.out / RUN, self._record.model_copy(update=counts))

    def _remove(self, files: set[str]) -> None:
        """Pictures of earlier lines, and folders that are empty then; no other files."""
        for file in sorted(files):
            parts = PurePosixPath(file).parts
            if parts[0] not in PICTURES or ".." in parts:
                continue
            path = self.out / file
            if path.is_file() or path.is_symlink():
                path.unlink()
            for folder in path.parents:
                if folder == self.out or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()


def read_run(out: Path) -> RunRecord | None:
    """What made the lines in a folder; None if there is none, an `SpgError` if it is damaged."""
    if not (out / RUN).is_file():
        return None
    return read_record(out / RUN, RunRecord, "a result of predict", "spg-pipe predict")


def check_out(out: Path) -> None:
    """Refuse to write into what is not an earlier result: an `SpgError` names it.

    Also folders that lead elsewhere by a link, and, with an OSError, an `out` that cannot be
    written. `out` need not exist.
    """
    advice = "Choose another --out, or move it away."
    if out.exists() and not out.is_dir():
        raise SpgError(f"{out} is a file; a folder is to be written there. {advice}")
    for name in (*PICTURES, *FILES):
        path, expected = out / name, "folder" if name in PICTURES else "file"
        if path.is_symlink() and expected == "folder":
            raise SpgError(
                f"{path} is a link to {path.readlink()}; pictures would be written there. {advice}"
            )
        if path.exists() and path.is_dir() != (expected == "folder"):
            found = "file" if expected == "folder" else "folder"
            raise SpgError(f"{path} is a {found}; a {expected} is to be written there. {advice}")
    if read_run(out) is None:
        for name in (*FILES, *PICTURES):
            if (out / name).exists():
                raise SpgError(
                    f"{out / name} would be replaced, but is not part of a result of this version "
                    f"of predict: there is no {RUN} in {out}. {advice}"
                )
    require_writable(out / RUN)


def results_of(out: Path) -> Iterator[Line]:
    """What the lines in a folder say; an `SpgError` if one is damaged."""
    return map(parse_line, lines_of(out / PREDICTIONS))


def write_table(out: Path, batch: Sequence[bool] | None = None) -> None:
    """Write scores.csv of the lines in a folder, in their order, as a whole.

    `batch` becomes the last column.
    """
    columns: dict[str, None] = {}
    for result in results_of(out):
        columns |= dict.fromkeys(row_of(result))
    if batch is not None:
        columns["batch_decision"] = None
    path = out / SCORES
    waiting = path.with_name(f".{SCORES}.new")
    with naming(path, waiting):
        with waiting.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
            writer.writeheader()
            for number, result in enumerate(results_of(out)):
                row = row_of(result)
                if batch is not None and isinstance(result, Result):
                    row["batch_decision"] = "anomalous" if batch[number] else "normal"
                writer.writerow(row)
        waiting.replace(path)
