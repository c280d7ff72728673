"""Frames of a video are judged one by one, and named by their numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from predict.conftest import rows_in
from tiny import TinyBackbone, files

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.predict import Ask, predict_images
from spg_pipe.predict.video import frames_of, is_video

FRAMES = 7


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A grey level a frame, stored without loss."""
    path = tmp_path / "line.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for number in range(FRAMES):
            pixels = np.full((32, 48, 3), 10 * number, np.uint8)
            pixels[: number + 1] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def ask(video, tmp_path, tiny_detector, monkeypatch) -> Ask:
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    tiny_detector.save(tmp_path / "detector")
    return Ask(tmp_path / "detector", [str(video)], tmp_path / "out", device="cpu")


def test_frames_come_in_order_with_their_pixels(video):
    items = list(frames_of(str(video), every=3))
    assert [item.name for item in items] == [
        "line.mkv#000000",
        "line.mkv#000003",
        "line.mkv#000006",
    ]
    for number, item in zip((0, 3, 6), items, strict=True):
        assert item.path is None
        assert isinstance(item.source, np.ndarray)
        assert (item.source[-1] == 10 * number).all()
        assert (item.source[number] == 255).all()


def test_a_video_is_judged_and_goes_on(ask):
    predict_images(replace(ask, every=2, limit=3), Console(0))
    rows = rows_in(ask.out)
    assert [row["path"] for row in rows] == [f"line.mkv#00000{number}" for number in (0, 2, 4)]
    assert len({row["sha256"] for row in rows}) == 3
    assert "overlays/line.mkv#000004.jpg" in files(ask.out)
    predict_images(ask, Console(0))
    assert rows_in(ask.out)[:5:2] == rows  # those that were known
    predict_images(replace(ask, overlays=1), Console(0))
    assert len([name for name in files(ask.out) if name.startswith("overlays/")]) == 1


def test_what_is_no_video_is_an_error_that_names_it(ask, tmp_path):
    damaged = tmp_path / "bad.mp4"
    damaged.write_bytes(b"no video")
    with pytest.raises(SpgError, match=r"bad\.mp4 cannot be read"):
        predict_images(replace(ask, sources=[str(damaged)]), Console(0))
    with pytest.raises(SpgError, match="judged alone"):
        predict_images(replace(ask, sources=[str(damaged), "a.png"]), Console(0))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SpgError, match=r"spg-pipe\[video\]"):
        next(frames_of("rtsp://user:secret@camera/1"))
    assert is_video("rtsp://camera/1")
    assert not is_video("a.png")
    assert not is_video("file://a.png")
