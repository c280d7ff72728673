"""Checkpoints: everything comes back to the bit, and what is of no use is never used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from spg_pipe.artefacts.checkpoint import Checkpoints, checkpoint_path
from spg_pipe.artefacts.files import _host

TENSORS = {
    "codes": torch.randn(4, 7, generator=torch.Generator().manual_seed(0)),
    "step": torch.tensor(12.0),
    "dead": torch.tensor([True, False, True]),
    "age": torch.tensor([3, 2**40]),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}
STATE = {"epoch": 3, "curve": [{"loss": 0.1 + 0.2, "nan": math.nan, "inf": math.inf}], "text": "é"}


def saved(path: Path, fingerprint: str = "f") -> Path:
    Checkpoints(path).save(fingerprint, TENSORS, STATE)
    return path


def useless(path: Path, fingerprint: str = "f") -> str:
    """What is said of a checkpoint that is of no use; "" if nothing."""
    said: list[str] = []
    assert Checkpoints(path, say=said.append).load(fingerprint) is None
    return "".join(said)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return checkpoint_path(tmp_path / "run-s1")


def test_everything_comes_back_to_the_bit(path: Path) -> None:
    loaded = Checkpoints(saved(path, "f" * 64)).load("f" * 64)
    assert loaded is not None
    tensors, state = loaded
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert tensors[name].equal(value)
    assert repr(state) == repr(STATE)


def test_it_lies_hidden_beside_its_artefact(path: Path) -> None:
    assert path.name == ".run-s1.checkpoint"
    assert list(saved(path).parent.iterdir()) == [path]
    for _ in range(2):
        Checkpoints(path).remove()
        assert list(path.parent.iterdir()) == []


def test_no_checkpoint_is_no_news(path: Path) -> None:
    assert useless(path) == ""


def test_a_checkpoint_of_another_run_is_ignored_with_a_message(path: Path) -> None:
    assert "the recipe or the options changed since" in useless(saved(path, "a" * 64), "b" * 64)


def test_going_on_with_other_threads_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    places = Checkpoints(path, say=said.append)
    for threads in (16, 16, 8):
        monkeypatch.setattr("torch.get_num_threads", lambda threads=threads: threads)
        if not said:
            places.save("f", TENSORS, STATE)
        found = places.load("f")
        assert found is not None
        assert repr(found[1]) == repr(STATE)
    assert said[:2] == [f"Going on from the checkpoint {path}."] * 2
    assert "(threads 16 → 8): the last bits may differ" in said[2]


@pytest.mark.parametrize("position", [0, 3, 8, 20, 200, 400, -1, -9])
def test_a_flipped_bit_anywhere_is_noticed(path: Path, position: int) -> None:
    content = bytearray(saved(path).read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    assert "training starts anew" in useless(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 64, "cut", "/"])
def test_anything_else_in_its_place_is_ignored_with_a_message(
    path: Path, content: bytes | str
) -> None:
    if content == "/":
        path.mkdir()
    else:
        path.write_bytes(saved(path).read_bytes()[:-5] if content == "cut" else content)
    assert "cannot be used" in useless(path)


def test_what_a_killed_writer_left_is_cleared(path: Path) -> None:
    rest = path.with_name(f".{path.name}.{_host()}-999999999.tmp")
    rest.write_bytes(b"half a checkpoint")
    assert useless(path) == ""
    assert not rest.exists()


def test_one_is_due_after_its_seconds_and_again_after_the_next(path: Path) -> None:
    assert Checkpoints(path, seconds=0).due()
    places = Checkpoints(path, seconds=3600)
    assert not places.due()
    places._last -= 3601
    assert places.due()
    places.save("f", TENSORS, STATE)
    assert not places.due()
    assert places.load("f") is not None
    places.remove()
    assert places.load("f") is None


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_run(path: Path) -> None:
    said: list[str] = []
    path.mkdir()
    Checkpoints(path, say=said.append).save("f", TENSORS, STATE)
    assert "could not be written" in said[0]
