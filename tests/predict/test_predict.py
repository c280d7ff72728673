"""Predictions over a person's own images: what is written, what is refused, what survives."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from predict.conftest import Run, rows_in
from tiny import TinyBackbone, files, photograph

from spg_pipe.backbones import precision
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, predict_images
from spg_pipe.predict.items import Item, Items, find_items
from spg_pipe.predict.ranking import Summary
from spg_pipe.predict.run import results_of

OURS = [".run.json.lock", "predictions.jsonl", "run.json", "scores.csv"]


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


@pytest.fixture
def ask(images, out, tiny_detector, monkeypatch) -> Ask:
    """The command's own way, with the tiny backbone."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    tiny_detector.save(images.parent / "detector")
    return Ask(images.parent / "detector", [str(images)], out, device="cpu")


def test_every_image_has_a_line_a_row_and_a_heat_map_and_nothing_else_is_there(images, out, run):
    lines = run(images, out)
    assert [line["path"] for line in lines] == ["a.png", "b.png", "more/c.png"]
    assert [line["group"] for line in lines] == ["", "", "more"]
    overlays = [f"overlays/{line['path']}.jpg" for line in lines]
    assert [line["files"]["overlay"] for line in lines] == overlays
    assert sorted(files(out)) == sorted([*OURS, *overlays])
    with (out / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["overlay"] for row in rows] == overlays
    assert [float(row["score"]) for row in rows] == [line["score"] for line in lines]
    assert {row["protocol"] for row in rows} == {"default"}


@pytest.mark.parametrize(("protocol", "size"), [("default", (30, 20)), ("spg", (20, 30))])
def test_exif_turns_an_image_unless_the_detectors_protocol_is_spg(
    tmp_path, out, run, protocol, size
):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = photograph(tmp_path / "turned.jpg", (20, 30), exif=exif)
    (line,) = run(source, out, protocol=protocol)
    assert (line["height"], line["width"]) == size
    assert line["protocol"] == protocol
    with Image.open(out / line["files"]["overlay"]) as overlay:
        assert (overlay.height, overlay.width) == size


def test_an_image_inside_the_output_folder_is_scored(out: Path, run: Run) -> None:
    source = photograph(out / "a.png")
    for _ in range(2):
        assert [line["path"] for line in run(source, out)] == ["a.png"]
    assert sorted(files(out)) == sorted(["a.png", "overlays/a.png.jpg", *OURS])


def test_heat_maps_of_an_earlier_run_are_not_taken_for_images(images: Path, run: Run) -> None:
    out = images / "predictions"
    first = run(images, out)
    assert run(images, out) == first
    with pytest.raises(SpgError, match=r"no images .*1 picture of an earlier run"):
        run(out / "overlays" / "a.png.jpg", out)
    with pytest.raises(SpgError, match="holds the images themselves"):
        run(images, images)


def test_masks_are_not_taken_for_images_but_counted(images: Path, out: Path, run: Run) -> None:
    photograph(images / "ground_truth" / "scratch" / "a_mask.png")
    photograph(images / "masks" / "b.png")
    notes = find_items([str(images)], out).notes
    assert notes[1:] == ("1 mask left out, by the folder masks/: masks/b.png",)
    assert [line["path"] for line in run(images, out)] == ["a.png", "b.png", "more/c.png"]
    # A folder that is named itself is meant.
    assert len(run(images / "masks", out)) == 1


def test_a_bad_file_is_told_counted_and_left_out(ask, images, capsys):
    whole = predict_images(ask, Console(0))
    assert (whole.images, whole.bad) == (3, 0)
    before = rows_in(ask.out)
    corrupt(images / "b.png")
    summary = predict_images(ask, Console(1))
    said = capsys.readouterr()
    assert (summary.images, summary.bad) == (3, 1)
    assert "Left out: The image" in said.err
    assert f"2 images judged, 1 bad file left out → {ask.out}/scores.csv" in said.out
    lines = rows_in(ask.out)
    assert "cannot be read" in lines[1]["error"]
    assert [lines[0], lines[2]] == [before[0], before[2]]
    assert not (ask.out / "overlays" / "b.png.jpg").exists()  # of the whole one
    with pytest.raises(SpgError, match=r"b\.png cannot be read"):
        predict_images(replace(ask, strict=True, out=images.parent / "strict"), Console(0))
    assert len(rows_in(images.parent / "strict")) == 2
    for name in ("a.png", "more/c.png"):
        corrupt(images / name)
    with pytest.raises(SpgError, match=r"None of 3 images could be judged\."):
        predict_images(ask, Console(0))


def test_a_detectors_folder_is_no_place_for_results(ask):
    before = files(ask.detector)
    with pytest.raises(SpgError, match=r"is the detector's folder\. Choose a folder of its own"):
        predict_images(replace(ask, out=ask.detector), Console(0))
    assert files(ask.detector) == before


def test_a_wrong_setting_is_no_fault_of_the_images(ask, monkeypatch):
    monkeypatch.setenv("SPG_MAX_MEGAPIXELS", "abc")
    with pytest.raises(SpgError, match=r"^The environment variable SPG_MAX_MEGAPIXELS is 'abc'"):
        predict_images(ask, Console(0))


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(images, out, run):
    unbroken = images.parent / "unbroken"
    run(images, unbroken)
    with pytest.raises(KeyboardInterrupt):
        run(images, out, TinyBackbone(fail_after=1))
    assert not (out / "scores.csv").exists()
    done = len(rows_in(out)) if (out / "predictions.jsonl").exists() else 0
    backbone = TinyBackbone()
    run(images, out, backbone)
    assert backbone.calls == 3 - done
    assert files(out) == files(unbroken)


def test_only_what_has_changed_is_judged_again(images, out, run):
    run(images, out)
    (out / "notes.txt").write_text("mine")
    (out / "overlays" / "mine.txt").write_text("mine too")
    photograph(images / "a.png", (50, 60))
    (images / "b.png").unlink()
    backbone = TinyBackbone()
    assert [line["path"] for line in run(images, out, backbone)] == ["a.png", "more/c.png"]
    assert backbone.calls == 1
    overlays = ["overlays/a.png.jpg", "overlays/mine.txt", "overlays/more/c.png.jpg"]
    assert sorted(files(out)) == sorted([*OURS, "notes.txt", *overlays])
    (out / "overlays" / "a.png.jpg").unlink()
    run(images, out, backbone)
    assert backbone.calls == 2


def test_an_image_that_comes_in_another_group_is_judged_again(images, out, run):
    for group in ("cam", "good"):  # of a folder, then of a path of standard input
        item = Item("cam/good/a.png", images / "a.png", group)
        assert [line["group"] for line in run(Items("", (item,)), out)] == [group]


def test_a_result_of_another_run_is_removed_when_the_first_image_is_done(images, out, run):
    run(images, out)
    before = files(out)
    with pytest.raises(KeyboardInterrupt):
        run(images, out, TinyBackbone(fail_after=0), protocol="spg")
    assert files(out) == before
    (images / "b.png").unlink()
    run(images, out, protocol="spg")
    assert "overlays/b.png.jpg" not in files(out)
    assert {line["protocol"] for line in rows_in(out)} == {"spg"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.csv", "player,points\nme,3\n", r"scores\.csv would be replaced, but is not part"),
        ("overlays/a.png.jpg", "mine", r"overlays would be replaced, but is not part"),
        ("scores.csv/x", "mine", r"scores\.csv is a folder"),
        ("overlays", "mine", "overlays is a file"),
        ("run.json", "mine", r"run\.json"),
        ("", "mine", "out is a file"),
    ],
)
def test_what_is_no_result_is_not_replaced(images, out, run, name, content, message):
    taken = out / name
    taken.parent.mkdir(parents=True)
    taken.write_text(content)
    before = files(out.parent)
    with pytest.raises(SpgError, match=message):
        run(images, out)
    assert files(out.parent) == before


def test_the_command_says_what_the_scores_depend_on(ask, tiny_detector, capsys):
    predict_images(ask, Console(1))
    assert (
        "protocol default, σ 4, image score max, tiny@32 layers 1+2 (post-norm), seed 111, "
        f"detector {tiny_detector.fingerprint[:8]}"
    ) in capsys.readouterr().out.splitlines()


def test_a_detector_judges_in_the_precision_of_its_record(ask, tiny_detector, monkeypatch, capsys):
    record = tiny_detector.record
    spec = record.backbone.model_copy(update={"precision": "bfloat16"})
    half = replace(tiny_detector, record=record.model_copy(update={"backbone": spec}).sealed())
    half.save(ask.detector.parent / "half")
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    predict_images(replace(ask, detector=ask.detector.parent / "half"), Console(1))
    said = capsys.readouterr()
    assert said.err.count("backbone.precision bfloat16 does not help here") == 1
    assert "tiny@32 in bfloat16 layers 1+2" in said.out


def test_of_the_highest_scores_alone_pictures_are_drawn_at_the_end(ask):
    lines: list[Any] = []
    predict_images(replace(ask, overlays=1), Console(0), lambda line: lines.append(line.text))
    highest = max(rows_in(ask.out), key=lambda line: line["score"])["path"]
    assert [name for name in files(ask.out) if "overlays" in name] == [f"overlays/{highest}.jpg"]
    assert len(lines) == 3
    predict_images(replace(ask, overlays=0), Console(0))
    assert not (ask.out / "overlays").exists()


@pytest.mark.parametrize("drawn", [False, True])
def test_frames_are_kept_only_where_their_pictures_are_drawn_at_the_end(images, out, run, drawn):
    run(images, out)
    frame = Item("line#000001", np.zeros((4, 4, 3), np.uint8))
    summary = Summary(drawn=drawn)
    summary.add(frame, next(results_of(out)))
    (highest,) = summary.top(20)
    assert (highest.item is frame) == drawn


def test_a_table_that_no_run_made_is_neither_replaced_nor_removed(ask):
    predict_images(ask, Console(0))
    mine = ask.out / "coco.json"
    mine.write_text("mine")
    with pytest.raises(SpgError, match=r"coco\.json would be replaced"):
        predict_images(replace(ask, coco=True), Console(0))
    predict_images(ask, Console(0))
    predict_images(replace(ask, maps=True), Console(0))
    assert mine.read_text() == "mine"
    mine.unlink()
    predict_images(replace(ask, coco=True), Console(0))
    assert mine.is_file()
    predict_images(ask, Console(0))
    assert not mine.exists()


def test_pictures_of_the_highest_scores_are_known_though_the_next_run_was_stopped(ask):
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    highest = replace(ask, overlays=1)
    predict_images(highest, Console(0))
    with pytest.raises(KeyboardInterrupt):
        predict_images(highest, Console(0), stop)
    predict_images(replace(ask, overlays=0), Console(0))
    assert not (ask.out / "overlays").exists()


def test_on_a_gpu_batches_are_judged_again_as_a_whole(images, out, run, monkeypatch):
    """The way of batches, with the forward passes on the CPU."""
    for number in range(9):
        photograph(images / "many" / f"{number}.png", (20, 30 + number))
    alone = run(images, images.parent / "alone")
    monkeypatch.setattr("spg_pipe.predict.judge._on_cpu", lambda _: False)
    corrupt(images / "b.png")
    backbone = TinyBackbone()
    rows = run(images, out, backbone)
    assert backbone.calls == 3  # of 12 images, 4 a batch
    assert [row["path"] for row in rows] == [row["path"] for row in alone]
    assert "error" in rows[1]
    for row, other in zip(rows[2:], alone[2:], strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
    photograph(images / "many" / "3.png", (60, 90))
    again = run(images, out, backbone)
    assert backbone.calls == 5  # the batch with a bad file, and the one that has changed
    assert [row for row in again if row["path"] != "many/3.png"] == [
        row for row in rows if row["path"] != "many/3.png"
    ]
