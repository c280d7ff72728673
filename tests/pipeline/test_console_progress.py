"""Progress where nobody watches a terminal: a line now and then, with an honest rate."""

from __future__ import annotations

import pytest

from spg_pipe.pipeline import console
from spg_pipe.pipeline.console import Console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; the test moves it."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_resumed_run_counts_only_its_own_work(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Console().progress("train-sae", "tokens") as update:
        clock[0] += 20
        update(9_000, 10_000, 0.5)
        clock[0] += 20
        update(9_200, 10_000, 0.25)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train-sae: 9,000/10,000 tokens, loss 0.5"
    assert second == "train-sae: 9,200/10,000 tokens, 10.0/s, 80 s left, loss 0.25"


def test_every_layer_counts_anew(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("train-sae") as update:
        update(20, 100, label="6")
        clock[0] += 40
        update(100, 100, label="6")
        clock[0] += 50
        update(1, 100, label="8")
        clock[0] += 10
        update(41, 100, label="8")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(", ")[:2] for line in lines] == [
        ["100/100 images", "2.0/s"],
        ["1/100 images"],
        ["41/100 images", "4.0/s"],
    ]
