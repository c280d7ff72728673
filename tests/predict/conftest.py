"""Predicting with the tiny detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import TinyBackbone

from spg_pipe.detector.model import Detector
from spg_pipe.predict.images import read_images
from spg_pipe.predict.judge import Prediction, judge_images, write_results
from spg_pipe.predict.predictor import Predictor
from spg_pipe.recipe.protocol import protocol as settings_of

Run = Callable[..., list[Prediction]]


@pytest.fixture
def run(tiny_detector: Detector) -> Run:
    """Predict with the tiny detector, image by image."""

    def run(
        source: Path, out: Path, backbone: TinyBackbone | None = None, protocol: str = "default"
    ) -> list[Prediction]:
        detector = tiny_detector
        if protocol == "spg":
            record = detector.record.model_copy(update={"protocol": settings_of("spg")})
            detector = replace(detector, record=record)
        predictor = Predictor(detector, backbone or TinyBackbone())
        images = read_images(source, out)
        judged = judge_images(predictor, images, batch_images=1)
        return write_results(judged, images, out, predictor.shown)

    return run
