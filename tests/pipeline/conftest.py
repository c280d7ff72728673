"""A tiny detector, labelled images, and commands on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from spg_pipe.detector.model import Detector

Command = Callable[..., str]


@pytest.fixture
def detector(tmp_path: Path, tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Path:
    from tiny import TinyBackbone

    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    tiny_detector.save(tmp_path / "detector")
    return tmp_path / "detector"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two categories with 20 good images each, three defects with masks and one without."""
    from tiny import write_folder

    return write_folder(tmp_path / "parts", good=20)


@pytest.fixture
def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """A command's result as JSON, or what it says to a person."""
    from spg_pipe.cli.main import app
    from spg_pipe.pipeline.console import exit_code

    monkeypatch.chdir(tmp_path)

    def run(*words: Any, fails: str = "", says: bool = False) -> Any:
        options = [] if says or fails else ["--json"]
        code = exit_code(lambda: app([*map(str, words), "--device", "cpu", *options]))
        out, err = capsys.readouterr()
        if fails:
            assert code
            assert fails in err
            return err
        assert code == 0, err
        return out + err if says else out

    return run
