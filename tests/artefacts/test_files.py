"""Artefacts are written whole or not at all, and are named by what determines them."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spg_pipe.artefacts.files import (
    _beside,
    _clear_folder,
    _host,
    fingerprint,
    fresh_folder,
    jsonable,
    require_writable,
    versions,
    write_bytes,
    write_json,
    write_text,
)
from spg_pipe.errors import SpgError
from spg_pipe.recipe.paths import with_suffix_hash

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A finished folder with the file `one`."""
    with fresh_folder(tmp_path / "run") as folder:
        (folder / "one").write_text("1")
    return tmp_path / "run"


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        write_json(path, {"new": 2})
    assert error.value.filename == str(path)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["/proc/a.json", "{}/" + "n" * 250, "{}/file/a.json"])
def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    path = Path(place.format(tmp_path))
    with pytest.raises(OSError, match=r"\[Errno") as error:
        write_json(path, {"a": 1})
    assert error.value.filename in (str(path), str(path.parent))
    assert names(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path: Path) -> None:
    require_writable(tmp_path / "not" / "there" / "yet.json")
    require_writable(Path("relative.json"))
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as error:
        require_writable(tmp_path / "file" / "below" / "a.json")
    assert error.value.filename == str(tmp_path / "file")


def test_a_file_is_durable_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "a.bin"
    order: list[str] = []
    true_fsync, true_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        order.append(f"fsync before the name exists: {not path.exists()}")
        true_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return true_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_bytes(path, b"one", memoryview(b"two"))
    assert path.read_bytes() == b"onetwo"
    # The file, then its name, then the folder that holds the name.
    assert order == [
        "fsync before the name exists: True",
        "rename",
        "fsync before the name exists: False",
    ]


def test_text_ends_with_one_newline(tmp_path: Path) -> None:
    for text in ("a", "a\n", "a\n\n"):
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_bytes() == b"a\n"


def test_a_fresh_folder_replaces_the_old_one_as_a_whole(place: Path) -> None:
    for rest in ("tmp", "old"):  # a killed writer's, of the highest number: no process has it
        (place.parent / f".run.{_host()}-4194303.{rest}").mkdir()
    with fresh_folder(place) as folder:
        (folder / "two").write_text("2")
        assert names(place) == ["one"]
    assert (names(place), names(place.parent)) == (["two"], ["run"])


def half_a_write(folder: Path, error: type[BaseException]) -> None:
    (folder / "half").write_text("x")
    raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_folder_and_no_rest(
    place: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), fresh_folder(place) as folder:
        half_a_write(folder, error)
    assert (names(place), names(place.parent)) == (["one"], ["run"])


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            full()
        return true(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space"), fresh_folder(place) as folder:
        (folder / "two").write_text("2")
    assert (names(place), names(place.parent)) == (["one"], ["run"])


def test_a_folder_that_cannot_be_filled_is_named_and_what_was_read_keeps_its_name(place):
    with pytest.raises(OSError, match="No space") as error, fresh_folder(place):
        full()  # as a write without a name
    assert error.value.filename == str(place)
    with pytest.raises(FileNotFoundError) as error, fresh_folder(place) as folder:
        (folder / "not" / "there").write_text("")
    assert error.value.filename == str(place)
    with pytest.raises(FileNotFoundError) as error, fresh_folder(place):
        (place / "not-there").read_text()
    assert error.value.filename == str(place / "not-there")


def test_of_a_link_in_a_folders_place_nothing_but_the_link_is_replaced(place: Path) -> None:
    elsewhere = place.rename(place.with_name("elsewhere"))
    place.symlink_to(elsewhere)
    with fresh_folder(place) as folder:
        (folder / "two").write_text("2")
    assert (names(place), names(elsewhere)) == (["two"], ["one"])
    assert sorted(names(place.parent)) == ["elsewhere", "run"]
    (lost := place.with_name("lost")).symlink_to("nowhere")
    with fresh_folder(lost) as folder:
        (folder / "three").write_text("3")
    assert names(lost) == ["three"]


def test_a_file_in_a_folders_place_is_not_removed(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.write_text("mine")
    with pytest.raises(SpgError, match="is a file"), fresh_folder(place):
        pass
    assert place.read_text() == "mine"


@given(JSON)
def test_any_result_becomes_valid_json(content: Any) -> None:
    text = json.dumps(jsonable({"x": content}), allow_nan=False)
    assert json.loads(text) == jsonable(json.loads(text))


def test_what_json_does_not_have_is_null() -> None:
    values = {"a": math.nan, "b": (math.inf, np.float32(2)), 3: np.int64(4), "c": np.array(0.5)}
    assert jsonable(values) == {"a": None, "b": [None, 2.0], "3": 4, "c": 0.5}


@given(st.dictionaries(st.text(), st.integers() | st.text(), max_size=6))
def test_a_fingerprint_does_not_follow_the_order_of_keys(content: dict[str, Any]) -> None:
    turned = dict(reversed(content.items()))
    assert fingerprint(content) == fingerprint(turned)
    assert fingerprint(content) != fingerprint(content | {"one more": 1})


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    assert fingerprint({"k": 32, "name": "é", "list": [1, 2.5, None]}) == (
        "e89a13adb042045d960ee315422d6a8a41cbb7f09edb9ab276b20dd88b7fecf7"
    )


def test_the_versions_are_of_what_can_move_a_number() -> None:
    assert {"spg-pipe", "torch", "timm", "zarr", "numpy", "scipy", "pillow"} <= set(versions())


def test_a_gpu_is_named_and_its_driver_where_nvml_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml", reason="the extra `gpu` is not installed")

    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "535.161")
    for start, driver in ((lambda: None, "535.161"), (no_library, None)):
        monkeypatch.setattr(pynvml, "nvmlInit", start)
        said = versions()
        assert (said["gpu"], said.get("driver")) == ("H200", driver)


def test_a_hash_goes_before_the_extension() -> None:
    digest = "0123456789abcdef"
    assert with_suffix_hash(Path("a/b.zarr"), digest) == Path("a/b-01234567.zarr")
    assert with_suffix_hash(Path("a/b-0.5"), digest) == Path("a/b-0.5-01234567")


def test_an_artefact_that_was_moved_aside_comes_back(place: Path) -> None:
    place.rename(place.with_name(f".run.{_host()}-4194303.old"))
    with pytest.raises(ZeroDivisionError), fresh_folder(place):
        raise ZeroDivisionError
    assert names(place) == ["one"]


def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    _beside(tmp_path / "new", "tmp").symlink_to(victim)
    write_bytes(tmp_path / "new", b"content")
    assert (tmp_path / "new").read_bytes() == b"content"
    assert victim.read_bytes() == b"mine"


DAYS = 86_400
LEFT = {
    # writer, days since its last change → whether it is left over
    (f"{_host()}-4194303", 0): True,  # the highest number: no process has it
    (f"{_host()}-1", 0): False,
    (f"{_host()}-1", 3): True,  # the number of a process that began later
    ("0a1b2c3d-4194303", 0): False,  # another machine's, which may be at work
    ("0a1b2c3d-4194303", -3): False,  # its clock is ahead, or ours was set back
    ("0a1b2c3d-4194303", 3): True,
    ("4194303", 3): False,  # somebody else's name
}


@pytest.mark.parametrize(("writer", "days"), LEFT)
def test_what_dead_writers_left_is_removed_and_what_others_may_be_writing_is_not(
    place: Path, monkeypatch: pytest.MonkeyPatch, writer: str, days: int
) -> None:
    folder, file = place.with_name(f".run.{writer}.tmp"), place.with_name(f".a.b.{writer}.tmp")
    folder.mkdir()
    file.write_text("half")
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + days * DAYS)
    _clear_folder.cache_clear()
    with fresh_folder(place) as made:
        write_text(made / "two", "2")
    write_text(place.parent / "c", "whole")
    assert (folder.exists(), file.exists()) == (not LEFT[writer, days],) * 2


def test_no_two_machines_and_no_two_processes_write_under_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for machine in ("line-1", "line-2"):
        monkeypatch.setattr("platform.node", lambda machine=machine: machine)
        for number in (7, 8):
            monkeypatch.setattr(os, "getpid", lambda number=number: number)
            _host.cache_clear()
            found.add(_beside(tmp_path / "a", "tmp"))
    monkeypatch.undo()
    _host.cache_clear()
    assert len(found) == 4


def test_every_file_of_a_folder_is_durable_before_it_gets_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, true = [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        true(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with fresh_folder(place) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "two").write_text("2")
    expected = [place / "deep" / "two", place / "deep", place, place.parent]
    assert {path.stat().st_ino for path in expected} <= set(synced)


def test_what_a_process_left_that_ended_and_is_still_listed_is_removed(place: Path) -> None:
    """As of a container whose first process asks after nobody."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    rest = place.with_name(f".run.{_host()}-{ended.pid}.tmp")
    rest.mkdir()
    with fresh_folder(place):
        pass
    assert not rest.exists()
    assert ended.wait() == 0


def test_a_folder_that_another_process_puts_in_place_meanwhile_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, others = Path.rename, iter(range(2))

    def rename(self: Path, target: Path) -> Path:
        done = true(self, target)
        if target.name.endswith(".old") and next(others, None) is not None:
            shutil.copytree(target, self)  # the other process's, moved there now
        return done

    monkeypatch.setattr(Path, "rename", rename)
    with fresh_folder(place) as folder:
        (folder / "two").write_text("2")
    assert (names(place), names(place.parent)) == (["two"], ["run"])
