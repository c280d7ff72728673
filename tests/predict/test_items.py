"""What arguments stand for, and how images are called."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny import TinyBackbone, photograph

from spg_pipe.errors import SpgError
from spg_pipe.predict.items import Item, Reading, find_items
from spg_pipe.predict.judge import JudgedImage, Unreadable, judge_items
from spg_pipe.predict.predictor import Predictor


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("cam1/a.png", "cam1/b.jpg", "cam2/deep/c.png", "d.png"):
        photograph(tmp_path / "shots" / name)
    (tmp_path / "list.txt").write_text("\ufeffshots/d.png\n\nshots/cam1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["shots"], ["cam1/a.png", "cam1/b.jpg", "cam2/deep/c.png", "d.png"]),
        (["shots/cam1"], ["a.png", "b.jpg"]),
        (["shots/d.png"], ["d.png"]),
        (["shots/d.png", "shots/d.png"], ["d.png"]),
        (["shots/cam1", "shots/cam2"], ["cam1/a.png", "cam1/b.jpg", "cam2/deep/c.png"]),
        (["shots/cam2", "shots/d.png"], ["cam2/deep/c.png", "d.png"]),
        (["shots/*/*.png"], ["a.png"]),
        (["shots/**/*.png"], ["cam1/a.png", "cam2/deep/c.png", "d.png"]),
        (["@list.txt"], ["d.png", "cam1/a.png", "cam1/b.jpg"]),
        (["shots/../shots/cam1"], ["a.png", "b.jpg"]),
        (["shots/d.png", "shots/gone.png"], ["d.png", "gone.png"]),
    ],
)
def test_names_are_relative_to_what_all_arguments_are_in(tree, sources, names):
    items = find_items(sources, tree / "out").listed
    assert [item.name for item in items] == names
    assert [item.group for item in items] == [
        name.partition("/")[0] if "/" in name else "" for name in names
    ]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["shots/*.tif"], "fits no file"),
        (["-", "shots"], "give it alone"),
        (["list.txt"], "has no images"),
        ([""], "is empty: write"),
        (["@none.txt"], "@none.txt is empty: write an image"),
        (["@shots/d.png"], "is no list: expected UTF-8 text"),
        (["@/dev/zero"], "is no list: expected UTF-8 text"),
        (["@itself.txt"], r"@itself\.txt does not exist"),
        (["@dash.txt"], "^- does not exist.*within a list the first three"),
        (["[@-]"], "^- is a pipe"),
        (["/dev/zero"], "is a pipe or a device"),
    ],
)
def test_what_stands_for_nothing_is_refused(tree, sources, message):
    (tree / "empty").mkdir()
    (tree / "none.txt").touch()
    (tree / "itself.txt").write_text("@itself.txt")
    (tree / "dash.txt").write_text("-")
    if sources == ["[@-]"]:
        os.mkfifo(tree / "-")
    with pytest.raises(SpgError, match=message):
        find_items(["empty"] if sources == ["list.txt"] else sources, tree / "out")


def test_each_image_of_standard_input_is_judged_before_the_next_is_there(tree, tiny_detector):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as stream:
        items = find_items(["-"], tree / "out", stream)
        assert (items.live, items.count) == (True, None)
        predictor = Predictor(tiny_detector, TinyBackbone())
        judged = judge_items(predictor, items, Reading(), _name_of, live=True)
        for line in ("shots/d.png", "shots/cam1/a.png", "gone.png", "shots/d.png"):
            os.write(writing, f"{line}\n".encode())
            assert next(judged).removesuffix("#2") == line
        os.write(writing, b"shots/cam1/b.jpg")
        os.close(writing)
        assert list(judged) == ["shots/cam1/b.jpg"]


def _name_of(judged: JudgedImage | Unreadable) -> str:
    assert isinstance(judged, Unreadable) == (judged.item.name == "gone.png")
    return judged.item.name


def test_16_bits_that_do_not_say_what_is_white_need_their_set(tree):
    Image.new("I;16", (20, 30), 4000).save(tree / "deep.png")
    item = next(iter(find_items(["-"], tree / "out", io.BytesIO(b"deep.png\n"))))
    read: Callable[[Reading], object] = lambda how: item.pixels(item.content(), how)  # noqa: E731
    with pytest.raises(SpgError, match="give `predict` their folder"):
        read(Reading(strict_white=True))
    read(Reading(strict_white=True, white=4095))
    read(Reading())


def test_a_list_may_come_through_a_pipe_and_an_empty_one_beside_others(tree):
    reading, writing = os.pipe()
    os.write(writing, "shots/d.png\r\na\u2028.png\n".encode())
    os.close(writing)
    (tree / "none.txt").touch()
    try:
        items = find_items([f"@/dev/fd/{reading}", "@none.txt"], tree / "out")
    finally:
        os.close(reading)
    assert [item.name for item in items] == ["shots/d.png", "a\u2028.png"]
    assert items.notes == ("@none.txt is empty",)


def test_a_pipe_is_an_image_that_cannot_be_read(tree):
    os.mkfifo(tree / "pipe.png")
    coming = find_items(["-"], tree / "out", io.BytesIO(b"\xef\xbb\xbf/dev/zero\npipe.png\na\0b\n"))
    pipe = r"is a pipe or a device\. Name a file"
    items = [*coming, *find_items(["pipe.png"], tree / "out")]
    for item, says in zip(items, (pipe, pipe, r"\\x00.*null byte", pipe), strict=True):
        assert "\0" not in item.name
        with pytest.raises(SpgError, match=says):
            item.content()


def test_a_frame_is_an_item_without_a_file():
    import numpy as np

    frame = np.zeros((4, 6, 3), np.uint8)
    item = Item("line#1", frame)
    assert item.path is None
    assert item.pixels(item.content(), Reading(strict_white=True)) is frame
