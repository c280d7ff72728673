"""Scores of the small store, made once."""

from __future__ import annotations

import pytest

from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores, score_store
from spg_pipe.store.reader import FeatureStore


@pytest.fixture(scope="session")
def scores(
    tiny_store: FeatureStore, tiny_detector: Detector, tmp_path_factory: pytest.TempPathFactory
) -> Scores:
    return score_store(tiny_detector, tiny_store, tmp_path_factory.mktemp("scores") / "run")
