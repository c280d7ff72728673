"""Predictions over a person's own images: what is written, what is refused, what survives."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import TinyBackbone, files, photograph

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, predict_folder
from spg_pipe.predict.images import read_images
from spg_pipe.predict.judge import Prediction

Run = Callable[..., list[Prediction]]
UNFINISHED = {".tmp", ".partial"}
"""Files that are written, not moved."""
HEADER = "path,score,height,width,peak_row,peak_column,overlay,protocol,score_cls,score_map_max"


def corrupt(path: Path) -> None:
    """Cut off an image's end."""
    path.write_bytes(path.read_bytes()[:-100])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one in a folder below."""
    for name in ("a.png", "b.png", "more/c.png"):
        photograph(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where results go; not there yet, nor is the folder above it."""
    return tmp_path / "fresh" / "out"


def test_every_image_has_a_row_and_a_heat_map_and_nothing_else_is_there(images, out, run):
    results = run(images, out)
    assert [row.path for row in results] == ["a.png", "b.png", "more/c.png"]
    assert list(files(out)) == [*(f"overlays/{row.path}.png" for row in results), "scores.csv"]
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "scores.csv"]
    assert (out / "scores.csv").read_text().splitlines()[0] == HEADER
    with (out / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["overlay"] for row in rows] == [row.overlay for row in results]
    assert {row["protocol"] for row in rows} == {"default"}


@pytest.mark.parametrize(("protocol", "size"), [("default", (30, 20)), ("spg", (20, 30))])
def test_exif_turns_an_image_unless_the_detectors_protocol_is_spg(
    tmp_path, out, run, protocol, size
):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = photograph(tmp_path / "turned.jpg", (20, 30), exif=exif)
    (row,) = run(source, out, protocol=protocol)
    assert (row.height, row.width) == size
    assert row.protocol == protocol
    with Image.open(out / row.overlay) as overlay:
        assert (overlay.height, overlay.width) == size


def test_an_image_inside_the_output_folder_is_scored(out: Path, run: Run) -> None:
    source = photograph(out / "a.png")
    for _ in range(2):
        assert [row.path for row in run(source, out)] == ["a.png"]
    assert list(files(out)) == ["a.png", "overlays/a.png.png", "scores.csv"]


def test_heat_maps_of_an_earlier_run_are_not_taken_for_images(images: Path, run: Run) -> None:
    out = images / "predictions"
    first = run(images, out)
    photograph(out / ".spg-predict.1" / "new" / "x.png")  # what a killed process leaves
    assert run(images, out) == first
    with pytest.raises(SpgError, match=r"no images .*1 picture of an earlier run"):
        run(out / "overlays" / "a.png.png", out)
    with pytest.raises(SpgError, match="holds the images themselves"):
        run(images, images)


def test_what_a_killed_process_left_is_removed(images: Path, out: Path, run: Run) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    mine, others = (out / f".spg-predict.{number}" for number in (killed.pid, os.getppid()))
    for folder in (mine, others):
        (folder / "new").mkdir(parents=True)
    run(images, out)
    assert (mine.exists(), others.exists()) == (False, True)  # the other process still runs


def test_masks_are_not_taken_for_images_but_counted(images: Path, out: Path, run: Run) -> None:
    photograph(images / "ground_truth" / "scratch" / "a_mask.png")
    photograph(images / "masks" / "b.png")
    notes = read_images(images, out).notes
    assert notes[1:] == ("1 mask left out, by the folder masks/: masks/b.png",)
    assert [row.path for row in run(images, out)] == ["a.png", "b.png", "more/c.png"]
    # A folder that is named itself is meant.
    assert len(run(images / "masks", out)) == 1


def test_a_failed_run_leaves_an_earlier_result_and_other_files_alone(images, out, run):
    whole = (images / "more" / "c.png").read_bytes()
    corrupt(images / "more" / "c.png")
    with pytest.raises(SpgError, match=r"c\.png"):
        run(images, out)
    assert not out.parent.exists()  # no new folder
    (images / "more" / "c.png").write_bytes(whole)
    run(images, out)
    (out / "notes.txt").write_text("mine")
    (out / "overlays" / "mine.txt").write_text("mine too")
    before = files(out)
    photograph(images / "a.png", (50, 60))
    corrupt(images / "more" / "c.png")
    with pytest.raises(SpgError, match=r"c\.png"):
        run(images, out)
    with pytest.raises(KeyboardInterrupt):
        run(images, out, TinyBackbone(fail_after=1))
    assert files(out) == before
    assert not list(out.glob(".*"))
    photograph(images / "more" / "c.png")
    run(images, out)
    after = files(out)
    assert after.keys() == before.keys()
    assert after["notes.txt"] == before["notes.txt"]
    assert after["overlays/a.png.png"] != before["overlays/a.png.png"]


@pytest.mark.parametrize("stop", range(1, 9))
def test_files_that_stop_moving_midway_move_back(images, out, run, monkeypatch, stop):
    """Two heat maps and the scores go aside, three heat maps and the scores come in: 7 moves."""
    late = (images / "more" / "c.png").rename(images.parent / "c.png")
    run(images, out)
    before = files(out)
    folders = sorted(out.rglob("*"))
    late.rename(images / "more" / "c.png")
    photograph(images / "a.png", (50, 60))
    rename, moves = Path.replace, []

    def replace_until(self: Path, target: Path) -> Path:
        if ".spg-predict." in str(self) + str(target) and self.suffix not in UNFINISHED:
            moves.append(target)
            if len(moves) == stop:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_until)
    if stop == 8:
        run(images, out)
        assert len(moves) == 7
        assert files(out).keys() == before.keys() | {"overlays/more/c.png.png"}
        return
    with pytest.raises(KeyboardInterrupt):
        run(images, out)
    assert files(out) == before
    assert sorted(out.rglob("*")) == folders


def test_older_files_that_cannot_be_moved_back_are_kept(images, out, run, monkeypatch):
    run(images, out)
    before = set(files(out).values())
    rename = Path.replace

    def stuck(self: Path, target: Path) -> Path:
        if "old" in self.parts or ("new" in self.parts and self.suffix not in UNFINISHED):
            raise OSError(f"no way from {self}")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stuck)
    with pytest.raises(OSError, match="no way"):
        run(images, out)
    assert before <= set(files(out).values())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.csv", "player,points\nme,3\n", r"scores\.csv is not a result of predict"),
        ("scores.csv", "", "its first line is ''"),
        ("overlays/a.png.png", "mine", r"a\.png\.png would be replaced, but is not part"),
        ("scores.csv/x", "mine", r"scores\.csv is a folder"),
        ("overlays/a.png.png/x", "mine", r"a\.png\.png is a folder"),
        ("overlays", "mine", "overlays is a file"),
        ("", "mine", "out is a file"),
    ],
)
def test_what_is_no_result_is_not_replaced(images, out, run, name, content, message):
    taken = out / name
    taken.parent.mkdir(parents=True)
    taken.write_text(content)
    before = files(out.parent)
    with pytest.raises(SpgError, match=message) as error:
        run(images, out)
    assert "another --out" in str(error.value)
    assert files(out.parent) == before


def test_the_command_says_what_the_scores_depend_on(images, out, tiny_detector, monkeypatch):
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    saved = images.parent / "detector"
    tiny_detector.save(saved)
    outcome = predict_folder(Ask(saved, images, out, device="cpu"), Console(0))
    facts = {
        "fingerprint": tiny_detector.fingerprint,
        "protocol": "default",
        "tau": 0.07,
        "sigma": 4.0,
        "image_score": "max",
        "backbone": "tiny@32 layers 1+2 (post-norm)",
        "seed": 111,
    }
    assert outcome.content.items() >= facts.items()
    rows: Any = outcome.content["predictions"]
    assert [row["protocol"] for row in rows] == ["default"] * 3
    assert (
        "protocol default, σ 4, image score max, tiny@32 layers 1+2 (post-norm), seed 111, "
        f"detector {tiny_detector.fingerprint[:8]}"
    ) in outcome.text.splitlines()
