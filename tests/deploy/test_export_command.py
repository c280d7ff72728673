"""`export`: what it refuses, and what it makes of a detector of bfloat16."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import TinyBackbone, files

from spg_pipe.artefacts.record import write_record
from spg_pipe.bank.fitted import FittedBank
from spg_pipe.cli.main import app
from spg_pipe.decision.calibration import Calibration, Judging, by_hand
from spg_pipe.deploy.card import card_of, in_words
from spg_pipe.deploy.check import predicted
from spg_pipe.deploy.export import require_replaceable
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import exit_code
from spg_pipe.pipeline.export import _require_whole_images
from spg_pipe.pipeline.predict import Ask
from spg_pipe.predict.normals import NormalFolder
from spg_pipe.predict.predictor import Predictor, load_predictor
from spg_pipe.recipe.params import BankParams


def command(*words: object) -> int:
    return exit_code(lambda: app(["export", *map(str, words), "--quiet"]))


def test_only_an_export_is_replaced(
    predictor: Predictor, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(words: str) -> None:
        before = files(tmp_path)
        assert command(detector, tmp_path) == 1
        assert words in capsys.readouterr().err
        assert files(tmp_path) == before

    (tmp_path / "mine.txt").write_text("mine")
    refused("holds other files than an export (mine.txt)")
    (tmp_path / "card.json").write_text('{"kind": "playing card"}')
    refused("card.json")
    write_record(tmp_path / "card.json", card_of("bolts", predictor, None, None))
    (tmp_path / "card.md").write_text("# bolts")
    refused("holds other files than an export (mine.txt)")
    (tmp_path / "mine.txt").unlink()
    require_replaceable(tmp_path)
    (tmp_path / "link").symlink_to(detector)
    with pytest.raises(SpgError, match=r"\(link\)"):
        require_replaceable(tmp_path)


def calibration_of(predictor: Predictor, **changes: Any) -> Calibration:
    """A calibration of a detector."""
    judged_by = {name: changes.pop(name) for name in ("white",) if name in changes}
    made = Calibration(
        judging=Judging(detector=predictor.detector.fingerprint, **judged_by),
        method="manual",
        false_alarms=None,
        confidence=None,
        recall=None,
        by_folder=False,
        groups={"": by_hand(1.0, None)},
        notes=(),
        made=date(2026, 1, 1),
        valid_until=None,
        versions={},
    )
    return made.model_copy(update=changes).sealed()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"by_folder": True, "groups": {"left": by_hand(1.0, None)}}, "a graph knows no folders"),
        ({"white": 4095}, "16-bit images whose white is 4095"),
        ({"valid_until": date(2026, 1, 2)}, "held until 2026-01-02"),
    ],
)
def test_calibrations_that_a_graph_cannot_keep_are_refused(
    predictor: Predictor,
    detector: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    calibration_of(predictor, **changes).save(tmp_path / "made.json")
    assert command(detector, tmp_path / "out", "--calibration", tmp_path / "made.json") == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"fit": "crop"}, {"fit": "letterbox"}, {"ignored": "0"}, {"tiles": (32, 64)}]
)
def test_a_bank_of_parts_of_images_is_refused(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    record = SimpleNamespace(
        fit=changes.get("fit", "squash"),
        ignored=changes.get("ignored"),
        backbone=SimpleNamespace(tiles=changes.get("tiles")),
    )
    monkeypatch.setattr("spg_pipe.pipeline.export.is_bank", lambda _: True)
    monkeypatch.setattr(FittedBank, "load", lambda _: SimpleNamespace(record=record))
    bank = NormalFolder(tmp_path, BankParams())
    with pytest.raises(SpgError, match="takes whole images"):
        _require_whole_images(Ask(detector, (), tmp_path / "out", normals=bank))


@pytest.mark.parametrize("able", [True, False])
def test_a_detector_of_bfloat16_is_exported_in_float32(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    record = predictor.detector.record
    spec = record.backbone.model_copy(update={"precision": "bfloat16"})
    half = replace(predictor.detector, record=record.model_copy(update={"backbone": spec}))
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    monkeypatch.setattr("spg_pipe.backbones.precision.has_bfloat16", lambda _: able)
    notes: list[str] = []
    exact = load_predictor(half, (), None, "cpu", notes.append, exact=True)
    image = np.full((40, 30, 3), 99, np.uint8)
    assert notes == []
    assert predicted(exact, image)[1] == predicted(predictor, image)[1]
    made = card_of("bolts", exact, None, None)
    assert (made.backbone.precision, made.precision) == ("bfloat16", "float32")
    assert "| precision of the graph | float32 |" in in_words(made)
