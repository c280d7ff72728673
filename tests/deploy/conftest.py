"""A tiny detector with the additive decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.serving import Server
    from spg_pipe.detector.model import Detector
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


@pytest.fixture(scope="module")
def server(tiny_detector: Detector) -> Iterator[Server]:
    """With small bounds."""
    from deploy.serving import served
    from spg_pipe.deploy.serving.bounds import Bounds

    bounds = Bounds(body_bytes=200_000, pixels=10_000, body_seconds=1, seconds=5, images=4)
    with served(tiny_detector, bounds) as running:
        yield running
