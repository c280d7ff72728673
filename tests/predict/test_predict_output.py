"""Where results of predict go: what can be known before the work is said before it."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny import TinyBackbone, files, photograph

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, predict_folder
from spg_pipe.predict import judge
from spg_pipe.predict.files import picture_paths

STOPPED = TinyBackbone(fail_after=0)
"""Nothing is to be judged."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "more/b.png"):
        photograph(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", [b"M\xfcller.png", b"more/\xff\x1b[31m.png", b"Stra\xdfe/a.png"])
def test_a_name_that_is_not_utf_8_is_named_before_the_work(images, out, run, name):
    path = images / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    photograph(images / "late.png").rename(path)
    with pytest.raises(SpgError, match=r"not valid UTF-8. Rename the file") as error:
        run(images, out, STOPPED)
    str(error.value).encode()  # it can be printed
    assert any(written in str(error.value) for written in ("M\\xfc", "\\xff\\x1b", "Stra\\xdf"))
    assert not out.exists()


@pytest.mark.parametrize("name", ["n" * 251, "部" * 83, "é" * 125 + "n"])
def test_a_heat_map_whose_name_would_be_too_long_gets_a_shorter_one(images, out, run, name):
    """Names of 255 bytes, the most that a file system takes."""
    names = sorted([f"{name}.png", f"{name[:-1]}x.png"])
    for each in names:
        photograph(images / "long" / each)
    results = run(images, out)
    assert [row.path for row in results] == ["a.png", *(f"long/{n}" for n in names), "more/b.png"]
    made = [row.overlay for row in results]
    assert len(set(made)) == 4
    assert sorted(path for path in files(out) if path != "scores.csv") == sorted(made)
    assert made[1].startswith(f"overlays/{name[:30]}")
    assert [row["overlay"] for row in rows(out)] == made
    assert run(images, out) == results  # the same names again
    for overlay in made:
        Image.open(out / overlay).verify()


def test_a_heat_map_in_the_place_of_a_folder_gets_another_name(images, out, run):
    photograph(images / "a.png.png" / "c.png")
    made = {row.path: row.overlay for row in run(images, out)}
    assert made["a.png.png/c.png"] == "overlays/a.png.png/c.png.png"
    assert made["a.png"].startswith("overlays/a.png.png-")
    assert made["more/b.png"] == "overlays/more/b.png.png"


def test_a_deep_folder_does_not_make_a_path_too_long():
    deep = Path(*["d" * 200] * 10)
    made = picture_paths([deep / "a.png", deep / "b.png", Path("a.png")])
    assert made[2] == Path("overlays/a.png.png")
    assert len(set(made)) == 3
    assert all(len(str(path)) < 250 for path in made)


@pytest.mark.parametrize("link", ["overlays", "overlays/more"])
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_a_link_is_not_written_through(tmp_path, images, out, run, link, there):
    run(images, out)
    elsewhere = tmp_path / "elsewhere"
    (out / link).rename(elsewhere if there else tmp_path / "gone")
    (out / link).symlink_to(elsewhere)
    before = files(tmp_path)
    with pytest.raises(SpgError, match=f"{link} is a link to .*elsewhere.*another --out"):
        run(images, out, STOPPED)
    assert files(tmp_path) == before
    (out / link).unlink()  # as it says
    assert len(run(images, out)) == 2


def test_a_prepared_link_in_the_place_of_waiting_files_is_removed(tmp_path, images, out, run):
    (tmp_path / "elsewhere").mkdir()
    out.mkdir()
    (out / f".spg-predict.{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    run(images, out)
    assert files(tmp_path / "elsewhere") == {}
    assert sorted(path.name for path in out.iterdir()) == ["overlays", "scores.csv"]


def test_an_output_that_cannot_be_written_is_named_before_the_work(images, run, monkeypatch):
    with pytest.raises(OSError, match=r"a\.png"):
        run(images, images / "a.png" / "below" / "out", STOPPED)
    if Path("/proc/self").exists():
        with pytest.raises(OSError, match="'/proc'"):
            run(images, Path("/proc/spg-results/out"), STOPPED)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/tmpq83kx")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(PermissionError):
        run(images, images.parent / "out", STOPPED)


def test_an_image_that_is_too_large_is_named_before_the_work(
    images, out, tiny_detector, monkeypatch
):
    class BegunError(Exception):
        pass

    def begin(*_: object, **__: object) -> None:
        raise BegunError

    monkeypatch.setattr("spg_pipe.backbones.load_backbone", begin)
    tiny_detector.save(images.parent / "detector")
    Image.new("L", (2500, 1000)).save(images / "large.png")
    ask = Ask(images.parent / "detector", images, out, device="cpu")
    monkeypatch.setenv("SPG_MAX_MEGAPIXELS", "1")
    with pytest.raises(SpgError, match=r"large\.png has 2500000 pixels.*SPG_MAX_MEGAPIXELS=3 "):
        predict_folder(ask, Console(0))
    assert not out.exists()
    monkeypatch.setenv("SPG_MAX_MEGAPIXELS", "3")  # as it says
    with pytest.raises(BegunError):
        predict_folder(ask, Console(0))


@pytest.mark.parametrize("lost", [{"a.png.png"}, {"a.png.png", "b.png.png"}])
def test_a_heat_map_that_cannot_be_written_costs_no_score(images, out, run, monkeypatch, lost):
    kept = run(images, out)
    true = judge.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name in lost:
            raise OSError(28, "No space left on device")
        true(path, data)

    monkeypatch.setattr(judge, "write_bytes", full)
    with pytest.raises(SpgError) as error:
        run(images, out)
    assert "has the scores of all 2 images, but " in str(error.value)
    assert f"No space left on device: {out / 'overlays/a.png.png'}. Make room" in str(error.value)
    assert [float(row["score"]) for row in rows(out)] == [row.score for row in kept]
    made = [row["overlay"] for row in rows(out)]
    assert made[0] == ""
    # No heat map of the earlier run stands beside the new scores.
    assert sorted(files(out)) == sorted([*filter(None, made), "scores.csv"])
