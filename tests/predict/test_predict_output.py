"""Where results of predict go: what can be known before the work is said before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from predict.conftest import rows_in
from tiny import TinyBackbone, files, photograph

from spg_pipe.artefacts.files import _beside
from spg_pipe.errors import SpgError
from spg_pipe.predict.finish import picture_path

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


@pytest.mark.parametrize("name", [b"M\xfcller.png", b"more/\xff\x1b[31m.png", b"Stra\xdfe/a.png"])
def test_a_name_that_is_not_utf_8_is_an_error_of_its_image_alone(images, out, run, name):
    path = images / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    photograph(images / "late.png").rename(path)
    lines = run(images, out)
    (bad,) = [line for line in lines if "error" in line]
    assert "not valid UTF-8. Rename the file" in bad["error"]
    assert any(written in bad["path"] for written in ("M\\xfc", "\\xff\\x1b", "Stra\\xdf"))
    assert len(lines) == 3


@pytest.mark.parametrize("name", ["n" * 251, "部" * 83, "é" * 125 + "n"])
def test_a_heat_map_whose_name_would_be_too_long_gets_a_shorter_one(images, out, run, name):
    """Names of 255 bytes, the most that a file system takes."""
    names = sorted([f"{name}.png", f"{name[:-1]}x.png"])
    for each in names:
        photograph(images / "long" / each)
    lines = run(images, out)
    assert [line["path"] for line in lines] == [
        "a.png",
        *(f"long/{n}" for n in names),
        "more/b.png",
    ]
    made = [line["files"]["overlay"] for line in lines]
    assert len(set(made)) == 4
    assert sorted(path for path in files(out) if path.startswith("overlays/")) == sorted(made)
    assert made[1].startswith(f"overlays/{name[:30]}")
    assert run(images, out) == lines  # the same names again
    for overlay in made:
        Image.open(out / overlay).verify()


def test_a_heat_map_never_has_the_place_of_a_folder():
    assert picture_path("a.png", "maps") == Path("maps/a.png.jpg")
    below = picture_path("a.png.jpg/c.png", "maps")
    assert below.parent == Path("maps")
    assert below.name.startswith("c.png-")


@pytest.mark.parametrize("name", ["/".join(["d" * 200] * 10) + "/a.png", "/etc/a.png", "../a.png"])
def test_a_path_that_is_deep_or_leads_elsewhere_does_not_lead_out(name):
    made = picture_path(name, "overlays")
    assert made.parent == Path("overlays")
    assert made.name.startswith("a.png-")
    assert len(str(made)) < 250


def test_a_folder_that_is_a_link_is_not_written_through(tmp_path, images, out, run):
    run(images, out)
    elsewhere = tmp_path / "elsewhere"
    (out / "overlays").rename(elsewhere)
    (out / "overlays").symlink_to(elsewhere)
    before = files(tmp_path)
    with pytest.raises(SpgError, match=r"overlays is a link to .*elsewhere.*another --out"):
        run(images, out, STOPPED)
    assert files(tmp_path) == before
    (out / "overlays").unlink()  # as it says
    assert len(run(images, out)) == 2


def test_no_link_below_is_written_through_or_removed_through(tmp_path, images, out, run):
    """Of a link in place of a picture or of a folder below: in the way, and for old pictures."""

    def behind() -> dict[str, bytes]:
        return {n: data for n, data in files(tmp_path).items() if n.startswith("elsewhere")}

    photograph(images / "more" / "deep" / "c.png")
    run(images, out)
    for name in ("a.png.jpg", "more/deep"):
        link, elsewhere = out / "overlays" / name, tmp_path / "elsewhere"
        link.rename(elsewhere)
        link.symlink_to(elsewhere)
        before = behind()
        with pytest.raises(SpgError, match=rf"{name} is a link to .*elsewhere"):
            run(images, out)
        assert behind() == before
        link.unlink()
        elsewhere.rename(link)
        run(images, out)
    deep = out / "overlays" / "more" / "deep"
    deep.rename(tmp_path / "deep")
    deep.symlink_to(tmp_path / "deep")
    (images / "more" / "deep" / "c.png").unlink()
    run(images, out)  # the picture of an image that is gone
    assert list(files(tmp_path / "deep")) == ["c.png.jpg"]


@pytest.mark.parametrize(
    "name",
    ["predictions.jsonl", "run.json", ".run.json.lock", ".earlier.jsonl", ".pictures.jsonl"],
)
def test_a_file_that_is_a_link_is_refused(tmp_path, images, out, run, name):
    run(images, out)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    with pytest.raises(SpgError, match=f"{name} is a link to .*victim"):
        run(images, out, STOPPED)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", ["scores.csv", ".earlier.jsonl", "run.json", ".pictures.jsonl"])
def test_a_link_under_a_temporary_name_is_not_written_through(tmp_path, images, out, run, name):
    run(images, out)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for link in (_beside(out / name, "tmp"), out / f".{name}.new"):
        link.symlink_to(victim)
    assert len(run(images, out)) == 2
    assert victim.read_text() == "mine"


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


def test_a_scan_whose_side_is_longer_than_that_of_a_jpeg_is_judged(images, out, run):
    Image.new("L", (70_000, 20)).save(images / "scan.png")
    assert [line["width"] for line in run(images, out) if line["path"] == "scan.png"] == [70_000]
    with Image.open(out / "overlays" / "scan.png.jpg") as overlay:
        assert overlay.size == (65_500, 19)


def test_an_image_that_is_too_large_is_told_and_how_to_allow_it(images, out, run, monkeypatch):
    Image.new("L", (2500, 1000)).save(images / "large.png")
    monkeypatch.setenv("SPG_MAX_MEGAPIXELS", "1")
    run(images, out)
    (bad,) = [line for line in rows_in(out) if "error" in line]
    assert "has 2500000 pixels" in bad["error"]
    assert "SPG_MAX_MEGAPIXELS=3 " in bad["error"]
    monkeypatch.setenv("SPG_MAX_MEGAPIXELS", "3")  # as it says
    assert not any("error" in line for line in run(images, out))
