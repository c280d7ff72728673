"""The graph says what `predict` says, whatever judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TinyBackbone

from spg_pipe.bank.fitted import GoodImages, fit_bank
from spg_pipe.decision import components
from spg_pipe.decision.rules import Published
from spg_pipe.deploy import formats, graph
from spg_pipe.deploy.check import predicted
from spg_pipe.deploy.graph import Graph
from spg_pipe.detector.model import Detector
from spg_pipe.predict.predictor import Predictor
from spg_pipe.recipe.params import BankParams, ImageScore

SHAPES = [(32, 32), (20, 75), (100, 41), (1, 60), (33, 1)]


def image_of(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def require_alike(predictor: Predictor, most: float = 2e-6) -> None:
    """Of images of several shapes; the decision is the side of the threshold."""
    for shape in SHAPES:
        image = image_of(shape)
        anomaly_map, score = predicted(predictor, image)
        for threshold, above in [(score - 1e-4, True), (score + 1e-4, False)]:
            with torch.no_grad():
                found = Graph(predictor, threshold)(torch.from_numpy(image)[None])
            assert found[0].shape == shape
            np.testing.assert_allclose(found[0].numpy(), anomaly_map, atol=most)
            np.testing.assert_allclose(found[1].numpy(), [score], atol=most)
            assert found[2].tolist() == [above]


def test_additive_decision(predictor: Predictor) -> None:
    require_alike(predictor)


@pytest.mark.parametrize("image_score", get_args(ImageScore))
def test_published_rule(tiny_detector: Detector, image_score: ImageScore) -> None:
    rule = Published(image_score=image_score)
    record = tiny_detector.record.model_copy(update={"rule": rule})
    require_alike(Predictor(replace(tiny_detector, record=record), TinyBackbone()))


def with_bank(predictor: Predictor) -> Predictor:
    goods = [image_of((40, 48), seed) for seed in range(1, 5)]
    images = GoodImages(
        lambda numbers: predictor.tokens([goods[n] for n in numbers.tolist()]),
        files=[(f"{n}.png", f"{n:064}") for n in range(4)],
        white=None,
    )
    spec = predictor.backbone.spec
    bank = fit_bank(images, predictor.detector, spec, BankParams(neighbours=2))
    return replace(predictor, bank=bank)


@pytest.mark.parametrize("alone", [False, True])
def test_bank_of_normal_images(predictor: Predictor, alone: bool) -> None:
    require_alike(replace(with_bank(predictor), alone=alone), most=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("image_score", ["mix", "log_mean_exp", None])
def test_other_rules_and_a_bank_run_in_onnx_runtime_too(
    predictor: Predictor, tiny_detector: Detector, image_score: ImageScore | None, tmp_path: Path
) -> None:
    if image_score:
        rule = Published(image_score=image_score)
        record = tiny_detector.record.model_copy(update={"rule": rule})
        judging = Predictor(replace(tiny_detector, record=record), TinyBackbone())
    else:
        judging = with_bank(predictor)
    program = formats.traced(Graph(judging, 0.4), judging.backbone.spec.preprocess.size)
    formats.write_onnx(program, 3, tmp_path / "model.onnx", {})
    judge = formats.read_onnx(tmp_path / "model.onnx")
    for shape in SHAPES:
        anomaly_map, score = predicted(judging, image_of(shape))
        found = judge(image_of(shape))
        np.testing.assert_allclose(found[0], anomaly_map, atol=5e-5)
        np.testing.assert_allclose(found[1], [score], rtol=1e-5, atol=5e-5)
        assert found[2].tolist() == [score > 0.4]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_self_distance_is_that_of_predict(height: int, width: int, seed: int) -> None:
    tokens = torch.randn(2, height * width, 5, generator=torch.Generator().manual_seed(seed))
    tokens = tokens / tokens.norm(dim=2, keepdim=True)
    torch.testing.assert_close(
        graph.self_distance(tokens, (height, width)),
        components.self_distance(tokens, (height, width)),
        atol=1e-6,
        rtol=0,
    )


def test_without_a_threshold_there_is_no_decision(predictor: Predictor) -> None:
    with torch.no_grad():
        assert len(Graph(predictor, None)(torch.zeros(1, 8, 9, 3, dtype=torch.uint8))) == 2
