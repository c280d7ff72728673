"""Scales, weights and bias: what is fitted on the auxiliary set, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import scanned
from tiny import METHOD, SAE, additive_plan, extracted, keyed, write_folder

from spg_pipe.decision.components import Sides
from spg_pipe.decision.fit import fit_weights, measure
from spg_pipe.decision.model import MAP_TOP
from spg_pipe.detector.make import make_detector, make_detectors
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores, score_store
from spg_pipe.errors import SpgError
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.recipe.params import (
    DecisionParams,
    ImageWeights,
    MapWeights,
    ScoreParams,
)
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

TRAINED = TrainedGuides(epochs=1)


def detector_of(store: FeatureStore, saes: SaeRun, **changes: Any) -> Detector:
    return make_detector(store, additive_plan(saes, **changes))[0]


def two_classes(seed: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """60 images of which the first component tells, the second does not, a quarter anomalous."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(60) % 4 == 0).astype(int)
    values = rng.normal(size=(60, 2))
    values[:, 0] += gap * labels
    return values, labels


@given(seed=st.integers(0, 999))
def test_a_firm_ridge_keeps_the_proportions(seed: int) -> None:
    values, labels = two_classes(seed, 2.0)
    _, weights = fit_weights(values, labels, np.array([1.0, 0.5]), 1e6)
    assert weights[1] == pytest.approx(weights[0] / 2, abs=1e-3)
    assert weights[0] > 0


def test_with_hardly_a_ridge_weights_are_those_of_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    values, labels = two_classes(0, 1.0)
    values[:, 1] += 0.5 * labels
    bias, weights = fit_weights(values, labels, np.array([1.0, 1.0]), 1e-9)
    expected = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-9).fit(values, labels)
    np.testing.assert_allclose(weights, expected.coef_[0], rtol=1e-2)
    assert bias == pytest.approx(expected.intercept_[0], rel=1e-2, abs=1e-2)


def test_classes_that_separate_wholly_give_finite_weights_and_what_misleads_none() -> None:
    values, labels = two_classes(3, 50.0)
    bias, weights = fit_weights(values, labels, np.array([1.0, 1.0]), 1.0)
    assert np.isfinite([bias, *weights]).all()
    assert weights.max() < 100
    values[:, 1] = -values[:, 0]
    _, weights = fit_weights(values, labels, np.array([1.0, 1.0]), 1e-3)
    assert weights[1] == 0


@pytest.fixture(scope="module")
def full(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Detector:
    return detector_of(tiny_store, tiny_sae)


def test_components_that_are_switched_off_are_gone(
    tiny_store: FeatureStore, tiny_sae: SaeRun, full: Detector, tmp_path: Path
) -> None:
    terms = {MAP_TOP, "detection", "self_distance"}
    assert set(full.decision.terms) == terms

    def scores_of(name: str, decision: DecisionParams) -> Scores:
        less = detector_of(tiny_store, tiny_sae, decision=decision)
        assert set(less.decision.terms) == terms - {name}
        return score_store(less, tiny_store, tmp_path / name)

    for name in terms:
        params = DecisionParams(image=ImageWeights.model_validate({name: 0}))
        assert f"share_{name}" not in scores_of(name, params).table
    without = scores_of("map", DecisionParams(map=MapWeights(self_distance=0)))
    everything = score_store(full, tiny_store, tmp_path / "full")
    assert not np.allclose(without.maps(np.arange(4)), everything.maps(np.arange(4)))


def test_shares_and_the_bias_are_the_score_of_a_detector_that_was_saved(
    tiny_store: FeatureStore, full: Detector, tmp_path: Path
) -> None:
    full.save(tmp_path / "d")
    loaded = Detector.load(tmp_path / "d")
    assert loaded.decision == full.decision
    table = score_store(loaded, tiny_store, tmp_path / "scores").table
    shares = table.filter(like="share_")
    assert shares.shape == (16, 3)
    total = shares.sum(axis=1) + full.decision.bias
    np.testing.assert_allclose(table["score"], total, atol=1e-9)


def test_scales_are_the_auxiliary_sets_own(tiny_store: FeatureStore, full: Detector) -> None:
    """On the set that they were taken from, components have mean 0."""
    tokens = {layer: image_tokens(tiny_store, layer, np.arange(16)) for layer in tiny_store.layers}
    patches, values = full.log_odds(keyed(tokens))
    parts = [*patches.values(), *(values[name] for name in ("detection", "self_distance"))]
    assert max(abs(float(part.mean())) for part in parts) < 1e-4
    assert all(full.decision.terms[name].deviation > 0 for name in values)


def test_images_are_weighed_by_guides_that_were_made_without_them(
    tiny_store: FeatureStore,
) -> None:
    """Other guides of a fold change what its images, and no others, are weighed by."""
    generator = torch.Generator().manual_seed(0)
    sides = {
        layer: Sides(
            {view: torch.randn(6, shape.dim, generator=generator) for view in ("cls", "patches")},
            torch.eye(shape.dim),
        )
        for layer, shape in tiny_store.spec.layers.items()
    }
    folds = np.arange(len(tiny_store)) % 5
    judges = np.stack([np.zeros_like(folds), folds + 1], axis=1)
    before = measure(tiny_store, sides, judges).layers
    for of_layer in sides.values():
        for rows in of_layer.directions.values():
            rows[1 + 2] += 1.0  # the guides made without fold 2
    after = measure(tiny_store, sides, judges).layers
    for layer, old in before.items():
        new = after[layer]
        moved = (old.guides != new.guides).any(dim=2)
        for changed in (moved, old.detection != new.detection):
            assert not changed[:, 0].any()
            assert changed[:, 1].tolist() == (folds == 2).tolist()


def test_trained_guides_have_seen_their_images_and_say_so(
    tiny_store: FeatureStore, tiny_sae: SaeRun, full: Detector
) -> None:
    assert full.record.rule.cross_fitted
    plain = detector_of(tiny_store, tiny_sae, guides=TRAINED)
    assert not plain.record.rule.cross_fitted
    assert set(plain.decision.terms) == set(full.decision.terms)


def test_without_normal_images_the_weights_stay_and_a_note_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "parts", ("bolt",), good=0, masked=4, missing=0)
    (folder / "bolt/test").mkdir()
    (folder / "bolt/dent").rename(folder / "bolt/test/dent")
    manifest = scanned("parts", "mvtec", folder, licence="CC0")
    store = extracted(manifest, tmp_path / "x.zarr")
    saes = train_sae(store, SAE, METHOD, seed=1)[0]
    notes: list[str] = []
    ((detector, _),) = make_detectors(store, [additive_plan(saes)], say=notes.append)
    decision = detector.decision
    assert {name: term.weight for name, term in decision.terms.items()} == {
        MAP_TOP: 1.0,
        "self_distance": 1.0,
    }
    assert decision.bias == 0
    assert any("no image component detection" in note for note in notes)
    assert any("no category has normal and anomalous images" in note for note in notes)
    only = DecisionParams(image=ImageWeights(map_top=0, self_distance=0))
    with pytest.raises(SpgError, match=r"components detection.*decision.image.map_top"):
        detector_of(store, saes, decision=only)


@pytest.mark.parametrize("detection", ["cls", "mean_tokens"])
def test_the_decision_looks_at_the_methods_detection_feature(
    tiny_store: FeatureStore, tiny_sae: SaeRun, detection: str
) -> None:
    method = METHOD.model_copy(update={"detection": detection})
    detector = detector_of(tiny_store, tiny_sae, method=method)
    assert all(set(guides.pairs) == {detection, "patches"} for guides in detector.layers.values())
    tokens = {layer: image_tokens(tiny_store, layer, np.arange(16)) for layer in tiny_store.layers}
    expected = []
    for layer, values in tokens.items():
        feature = values[:, 0] if detection == "cls" else values[:, 1:].mean(dim=1)
        normal, anomaly = detector.layers[layer].pairs[detection].vectors
        along = torch.nn.functional.normalize(feature, dim=1) @ (anomaly - normal)
        scale = detector.decision.scales[layer]["image_detection"]
        expected.append((along.double() - scale.mean) / scale.deviation)
    values = detector.log_odds(keyed(tokens))[1]["detection"]
    np.testing.assert_allclose(values, torch.stack(expected).mean(dim=0), atol=1e-4)


@pytest.mark.parametrize("detection", ["cls", "mean_tokens"])
def test_contrast_guides_are_judged_by_the_published_rule_too(
    tiny_store: FeatureStore, tiny_sae: SaeRun, detection: str
) -> None:
    published = ScoreParams(rule="published", image_score="cls")
    method = METHOD.model_copy(update={"detection": detection})
    detector = detector_of(tiny_store, tiny_sae, method=method, score=published)
    only = replace(detector, layers={"1": detector.layers["1"]})
    tokens = image_tokens(tiny_store, "1", np.arange(16))
    _, cls = only.probabilities(keyed({"1": tokens}))
    feature = tokens[:, 0] if detection == "cls" else tokens[:, 1:].mean(dim=1)
    normal, anomaly = only.layers["1"].pairs[detection].vectors
    cosines = torch.nn.functional.normalize(feature, dim=1) @ (anomaly - normal)
    expected = torch.sigmoid(cosines.double() / 0.07)
    torch.testing.assert_close(cls, expected, atol=1e-5, rtol=0)
    assert cls.std() > 0


def test_a_detector_without_a_decision_cannot_be_asked_for_one(
    tiny_store: FeatureStore, tiny_detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(SpgError, match=r"train-guides.*score.rule: additive"):
        score_store(tiny_detector, tiny_store, tmp_path / "s", score=ScoreParams())
    assert not (tmp_path / "s").exists()
