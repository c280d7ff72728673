"""Predictions over a person's own images: what is written, what is refused, what survives."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import TinyBackbone, files

from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import predict_folder
from spg_pipe.predict.images import read_images
from spg_pipe.predict.judge import Prediction, judge_images
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.results import write_results
from spg_pipe.recipe.protocol import protocol as settings_of

Run = Callable[..., list[Prediction]]
HEADER = "path,score,height,width,peak_row,peak_column,overlay,protocol,score_cls,score_map_max"


def photograph(path: Path, size: tuple[int, int] = (20, 30), **options: Any) -> Path:
    """A noisy image of (height, width) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def corrupt(path: Path) -> Path:
    """The same image without its end."""
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images, one in a folder below."""
    for name in ("a.png", "b.png", "more/c.png"):
        photograph(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def run(tiny_detector: Detector) -> Run:
    """Predict with the tiny detector, image by image."""

    def run(
        source: Path, out: Path, backbone: TinyBackbone | None = None, protocol: str = "default"
    ) -> list[Prediction]:
        detector = tiny_detector
        if protocol == "spg":
            record = detector.record.model_copy(update={"protocol": settings_of("spg")})
            detector = replace(detector, record=record)
        predictor, images = (
            Predictor(detector, backbone or TinyBackbone()),
            read_images(source, out),
        )
        judged = judge_images(predictor, images, batch_images=1)
        return write_results(judged, images, out, predictor.shown)

    return run


def test_every_image_has_a_row_and_a_heat_map_and_nothing_else_is_there(
    images: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "new" / "out"
    results = run(images, out)
    assert [row.path for row in results] == ["a.png", "b.png", "more/c.png"]
    assert list(files(out)) == [*(f"overlays/{row.path}.png" for row in results), "scores.csv"]
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "scores.csv"]
    assert (out / "scores.csv").read_text().splitlines()[0] == HEADER
    with (out / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["overlay"] for row in rows] == [row.overlay for row in results]
    assert {row["protocol"] for row in rows} == {"default"}


@pytest.mark.parametrize("protocol", ["default", "spg"])
def test_exif_turns_an_image_unless_the_detectors_protocol_is_spg(
    tmp_path: Path, run: Run, protocol: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = photograph(tmp_path / "turned.jpg", (20, 30), exif=exif)
    (row,) = run(source, tmp_path / "out", protocol=protocol)
    size = (30, 20) if protocol == "default" else (20, 30)
    assert (row.height, row.width) == size
    assert row.protocol == protocol
    with Image.open(tmp_path / "out" / row.overlay) as overlay:
        assert (overlay.height, overlay.width) == size


def test_an_image_inside_the_output_folder_is_scored(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "p"
    source = photograph(out / "a.png")
    for _ in range(2):
        assert [row.path for row in run(source, out)] == ["a.png"]
    assert list(files(out)) == ["a.png", "overlays/a.png.png", "scores.csv"]


def test_heat_maps_of_an_earlier_run_are_not_taken_for_images(images: Path, run: Run) -> None:
    out = images / "predictions"
    first = run(images, out)
    (out / ".spg-predict.1" / "new").mkdir(parents=True)  # what a killed process leaves
    photograph(out / ".spg-predict.1" / "new" / "x.png")
    assert run(images, out) == first
    with pytest.raises(SpgError, match="no images but the heat maps of an earlier run"):
        run(out / "overlays" / "a.png.png", out)
    with pytest.raises(SpgError, match="holds the images themselves"):
        run(images, images)


def test_what_a_killed_process_left_is_removed(images: Path, run: Run) -> None:
    out = images / "predictions"
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    mine, others = (out / f".spg-predict.{number}" for number in (killed.pid, os.getppid()))
    for folder in (mine, others):
        (folder / "new").mkdir(parents=True)
    run(images, out)
    assert (mine.exists(), others.exists()) == (False, True)  # the other process still runs


def test_masks_are_not_taken_for_images(images: Path, tmp_path: Path, run: Run) -> None:
    photograph(images / "ground_truth" / "scratch" / "a_mask.png")
    photograph(images / "masks" / "b.png")
    assert [row.path for row in run(images, tmp_path / "out")] == ["a.png", "b.png", "more/c.png"]
    # A folder that is named itself is meant.
    assert len(run(images / "masks", tmp_path / "two")) == 1


def test_a_failed_run_leaves_an_earlier_result_and_other_files_alone(
    images: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
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


def test_a_failed_run_leaves_no_new_folder(images: Path, tmp_path: Path, run: Run) -> None:
    corrupt(images / "more" / "c.png")
    with pytest.raises(SpgError, match=r"c\.png"):
        run(images, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("stop", range(1, 9))
def test_files_that_stop_moving_midway_move_back(
    images: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """Two heat maps and the scores go aside, three heat maps and the scores come in: 7 moves."""
    out = tmp_path / "out"
    late = (images / "more" / "c.png").rename(tmp_path / "c.png")
    run(images, out)
    before = files(out)
    late.rename(images / "more" / "c.png")
    photograph(images / "a.png", (50, 60))
    rename, moves = Path.replace, []

    def replace_until(self: Path, target: Path) -> Path:
        if ".spg-predict." in str(self) + str(target) and self.suffix != ".tmp":
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
    assert sorted(path.name for path in out.rglob("*")) == [
        "a.png.png",
        "b.png.png",
        "overlays",
        "scores.csv",
    ]


def test_older_files_that_cannot_be_moved_back_are_kept(
    images: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(images, out)
    before = set(files(out).values())
    rename = Path.replace

    def stuck(self: Path, target: Path) -> Path:
        if "old" in self.parts or ("new" in self.parts and self.suffix != ".tmp"):
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
    ],
)
def test_what_is_no_result_is_not_replaced(
    images: Path,
    tmp_path: Path,
    run: Run,
    name: str,
    content: str,
    message: str,
) -> None:
    place = tmp_path / "out" / name
    place.parent.mkdir(parents=True)
    place.write_text(content)
    before = files(tmp_path / "out")
    with pytest.raises(SpgError, match=message) as error:
        run(images, tmp_path / "out")
    assert "another --out" in str(error.value)
    assert files(tmp_path / "out") == before


def test_an_output_that_is_a_file_is_refused(images: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SpgError, match="is a file"):
        run(images, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_the_command_says_what_the_scores_depend_on(
    images: Path, tmp_path: Path, tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    tiny_detector.save(tmp_path / "detector")
    outcome = predict_folder(
        tmp_path / "detector",
        images,
        tmp_path / "out",
        weights=None,
        device="cpu",
        console=Console(verbosity=0),
    )
    facts = {
        "fingerprint": tiny_detector.fingerprint,
        "protocol": "default",
        "tau": 0.07,
        "sigma": 4.0,
        "image_score": "max",
        "backbone": "tiny@32 layers 1+2 (post-norm)",
        "seed": 111,
    }
    content = json.loads(json.dumps(outcome.content()))
    assert content.items() >= facts.items()
    assert [row["protocol"] for row in content["predictions"]] == ["default"] * 3
    assert (
        "protocol default, σ 4, image score max, tiny@32 layers 1+2 (post-norm), seed 111, "
        f"detector {tiny_detector.fingerprint[:8]}"
    ) in outcome.text().splitlines()
