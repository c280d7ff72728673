"""Predicting with the tiny detector."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyBackbone

from spg_pipe.detector.model import Detector
from spg_pipe.predict.finish import Finish, finish
from spg_pipe.predict.items import Items, Reading, find_items
from spg_pipe.predict.judge import judge_items
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.run import ResultFolder, RunRecord
from spg_pipe.recipe.protocol import protocol as settings_of

Rows = list[dict[str, Any]]
Run = Callable[..., Rows]


def rows_in(out: Path) -> Rows:
    """What the lines in a folder say."""
    with (out / "predictions.jsonl").open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.fixture
def run(tiny_detector: Detector) -> Run:
    """Predict with the tiny detector; the lines."""

    def run(
        source: Path | Items,
        out: Path,
        backbone: TinyBackbone | None = None,
        protocol: str = "default",
    ) -> Rows:
        detector = tiny_detector
        if protocol == "spg":
            record = detector.record.model_copy(update={"protocol": settings_of("spg")})
            detector = replace(detector, record=record)
        predictor = Predictor(detector, backbone or TinyBackbone())
        items = find_items([str(source)], out) if isinstance(source, Path) else source
        how = Reading(exif=detector.record.protocol.exif_of_own_images)
        with ResultFolder(out, RunRecord(identity={"protocol": protocol})) as folder:
            then = partial(finish, how=Finish(predictor, out, folder.plan))
            for line in judge_items(predictor, items, how, then, known=folder.known):
                folder.add(line)
            folder.finish()
        return rows_in(out)

    return run
