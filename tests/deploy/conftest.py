"""A tiny detector with the additive decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from spg_pipe.predict.predictor import Predictor
    from spg_pipe.sae.run import SaeRun
    from spg_pipe.store.reader import FeatureStore


@pytest.fixture(scope="session")
def predictor(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Predictor:
    from dataclasses import replace

    from tiny import TinyBackbone, additive_plan, weighted

    from spg_pipe.detector.make import make_detector
    from spg_pipe.predict.predictor import Predictor

    detector = weighted(make_detector(tiny_store, additive_plan(tiny_sae))[0])
    detector = replace(detector, record=detector.record.sealed())
    return Predictor(detector, TinyBackbone())


@pytest.fixture(scope="session")
def detector(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detectors") / "bolts"
    predictor.detector.save(path)
    return path
