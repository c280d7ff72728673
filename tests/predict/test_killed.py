"""A run that is killed, at whatever point, ends when it is given again as an unbroken one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyBackbone, files, photograph

from spg_pipe.detector.model import Detector
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.lines import GrowingLines
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.run import COCO, ResultFolder, RunRecord
from spg_pipe.recipe.protocol import protocol


class Killed(BaseException):
    """Stands for the end of the process: no file is touched after it."""


@dataclass
class Death:
    """Counts what is done to files below a folder, and ends a run there.

    Python tells a hook of each file that is opened, renamed, removed, and each folder; a line that
    is written is told by `GrowingLines.add`. Once dead, everything raises: no `finally` tidies up.
    """

    out: Path | None = None
    left: int = 0
    told: list[str] = field(default_factory=list)
    truly: bool = False
    """End the process."""

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.out is None or event not in EVENTS or not self._ours(args[0]):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wxa")):
            return
        self.told.append(f"{event} {Path(args[0]).name}")
        self.left -= 1
        if self.left < 0:
            if self.truly:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed

    def _ours(self, path: object) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(f"{self.out}/")


EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "spg.line"}
DEATH = Death()
sys.addaudithook(DEATH)  # no hook can be removed; without `out` it does nothing


@pytest.fixture
def death(monkeypatch) -> Iterator[Death]:
    monkeypatch.setattr("os.fsync", lambda _: None)  # of no use here, and slow
    monkeypatch.setattr(GrowingLines, "add", told_of(GrowingLines.add))
    yield DEATH
    DEATH.out = None


def told_of(add: Any) -> Any:
    """`GrowingLines.add` with a point before each of the two lines."""

    def told(lines: GrowingLines, line: str, why: str = "") -> None:
        paths, streams = lines._paths, lines._streams
        for path in reversed(paths):
            sys.audit("spg.line", str(path), "")
            lines._paths, lines._streams = [path], [streams[paths.index(path)]]
            add(lines, line if path == paths[0] else why)
            lines._paths, lines._streams = paths, streams

    return told


def predict(
    detector: Detector, photos: Path, out: Path, identity: str = "A", *, drawn: bool = True
) -> int:
    """A run with COCO and, if `drawn`, pictures and explanations; how many images it judged."""
    tables = ("scores.csv", *["explanations.jsonl"] * drawn, *COCO)
    backbone = TinyBackbone()
    if identity != "A":
        record = detector.record.model_copy(update={"protocol": protocol("spg")})
        detector = replace(detector, record=record)
    predictor, items = Predictor(detector, backbone), find_items([str(photos)], out)
    with ResultFolder(out, RunRecord(identity={"of": identity}, tables=tables)) as folder:
        how = Finish(predictor, out, folder.plan, overlays=drawn, maps=drawn)
        then = partial(finish, how=how)
        known = folder.known
        judged = judge_items(predictor, items, Reading(), then, known=known, explained=drawn)
        for entry in judged:
            folder.add(entry)
        folder.finish()
    return backbone.calls


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three images, one of them bad."""
    for name in ("a.png", "b.png"):
        photograph(tmp_path / "photos" / name, (20, 24 + ord(name[0])))
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def insert(photos: Path) -> None:
    photograph(photos / "aa.png", (30, 20))


def change(photos: Path) -> None:
    photograph(photos / "a.png", (40, 44))


def remove(photos: Path) -> None:
    (photos / "a.png").unlink()


def nothing(photos: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("earlier", "change", "killed", "undone", "drawn"),
    [
        pytest.param("", nothing, "A", False, True, id="first"),
        pytest.param("A", insert, "A", False, True, id="inserted"),
        pytest.param("A", change, "A", True, True, id="changed-and-undone"),
        pytest.param("A", remove, "A", False, True, id="removed"),
        pytest.param("B", nothing, "A", False, False, id="another-run"),
        pytest.param("A", insert, "B", True, True, id="there-and-back"),
    ],
)
def test_wherever_a_run_is_killed_the_next_one_ends_as_an_unbroken_one(
    tmp_path, photos, tiny_detector, death, earlier, change, killed, undone, drawn
):
    """A run that ends, one over changed images that is killed at its nth deed, and a third."""
    run = partial(predict, tiny_detector, drawn=drawn)
    first, unchanged = tmp_path / "first", tmp_path / "unchanged"
    if earlier:
        run(photos, first, earlier)
    shutil.copytree(photos, unchanged)
    change(photos)
    last = unchanged if undone else photos
    unbroken = tmp_path / "unbroken"
    run(last, unbroken)
    expected, wrong = files(unbroken), []
    for point in range(1000):
        out = tmp_path / f"out-{point}"
        if first.exists():
            shutil.copytree(first, out)
        death.out, death.left, death.told = out, point, []
        with suppress(Killed):
            run(photos, out, killed)
        finished, death.out = death.left >= 0, None
        run(last, out)
        if files(out) != expected:
            wrong.append((point, death.told[point], {*files(out)} ^ {*expected}))
        shutil.rmtree(out)
        if finished:
            break
    assert not wrong
    assert finished
    assert point > 20  # kills before pictures, both lines, tables, the record …


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from predict.test_killed import DEATH, GrowingLines, predict, told_of
from spg_pipe.detector.model import Detector

detector, photos, out = map(Path, sys.argv[2:5])
GrowingLines.add = told_of(GrowingLines.add)
DEATH.out, DEATH.left, DEATH.truly = out, int(sys.argv[5]), True
predict(Detector.load(detector), photos, out)
"""


def test_a_process_that_is_killed_again_and_again_leaves_what_it_has_done(
    tmp_path, photos, tiny_detector
):
    for number in range(20):
        photograph(photos / "more" / f"{number:02d}.png", (20, 24 + number))
    tiny_detector.save(tmp_path / "detector")
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"
    assert predict(tiny_detector, photos, unbroken) == 22
    tests = Path(__file__).resolve().parents[1]
    for point in (40, 90):
        command = [sys.executable, "-c", KILLED, tests, tmp_path / "detector", photos, out]
        ended = subprocess.run([*map(str, command), str(point)], timeout=120, check=False)
        assert ended.returncode == -signal.SIGKILL
    lines = len((out / "predictions.jsonl").read_text().splitlines())
    assert predict(tiny_detector, photos, out) <= 23 - lines
    assert files(out) == files(unbroken)
    assert predict(tiny_detector, photos, out) == 0
