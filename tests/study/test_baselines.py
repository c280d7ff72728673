"""Baselines are their formulas, and say what they saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import codes_of, extracted, manifest_of, plan_of, vectors_of, write_folder

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.make import make_detector
from spg_pipe.guides.kinds import TrainedGuides
from spg_pipe.recipe.params import MetricParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens
from spg_pipe.study.baselines import (
    Values,
    dissimilarity,
    free_dictionary,
    logistic_regression,
    mahalanobis,
    mutual_scoring,
    score_patchwise,
)


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Four normal images of each category, other ones than the store's."""
    root = tmp_path_factory.mktemp("normals")
    folder = write_folder(root / "parts", masked=0, missing=0, seed=7)
    return extracted(manifest_of(folder), root / "x.zarr")


def unit_tokens(store: FeatureStore, layer: str, images: list[int]) -> np.ndarray:
    tokens = store.tokens(layer, np.array(images)).astype(np.float64)
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def values_of(judge: Values, store: FeatureStore, images: list[int]) -> dict[str, np.ndarray]:
    rows = np.array(images)
    return {
        layer: judge(TokenKey(layer), image_tokens(store, layer, rows), rows).double().numpy()
        for layer in store.layers
    }


def test_dissimilarity_is_the_distance_from_the_mean_patch(tiny_store):
    found = values_of(dissimilarity(), tiny_store, [3, 8])
    for layer, values in found.items():
        x = unit_tokens(tiny_store, layer, [3, 8])
        expected = 1 - np.einsum("bnd,bd->bn", x, x.mean(axis=1))
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_mahalanobis_is_that_of_scikit_learn_for_each_category(tiny_store, normals):
    from sklearn.covariance import LedoitWolf

    found = values_of(mahalanobis(tiny_store, normals), tiny_store, [2, 12])
    known = unit_tokens(normals, "1", list(range(8)))
    for place, (image, own) in enumerate(((2, known[:4]), (12, known[4:]))):
        fitted = LedoitWolf().fit(own.reshape(-1, 12))
        squared = fitted.mahalanobis(unit_tokens(tiny_store, "1", [image])[0])
        np.testing.assert_allclose(found["1"][place], np.sqrt(squared / 12), rtol=1e-3)


def test_images_of_the_target_judge_each_other_but_never_themselves(tiny_store):
    found = values_of(mutual_scoring(tiny_store, seed=0), tiny_store, [4])["2"][0]
    x = unit_tokens(tiny_store, "2", list(range(16)))
    distances = [1 - (x[4] @ x[other].T).max(axis=1) for other in range(16) if other != 4]
    nearest = np.sort(distances, axis=0)[: int(0.3 * 15)]
    np.testing.assert_allclose(found, nearest.mean(axis=0), atol=1e-5)


def test_logistic_regression_tells_the_classes_that_it_was_fitted_on(tiny_store):
    judge = logistic_regression(tiny_store, seed=0)
    masks = tiny_store.masks(np.arange(16)).reshape(16, 4, 8, 4, 8).mean(axis=(2, 4))
    values = values_of(judge, tiny_store, list(range(16)))["1"]
    taught = (tiny_store.array("mask_state") != 2)[:, None]
    defective, normal = (c.reshape(16, 16) & taught for c in (masks > 0.5, masks == 0))
    assert values[defective].mean() > 0 > values[normal].mean()


def test_free_guides_are_any_vectors(tiny_store):
    guides = TrainedGuides(epochs=1)
    axes = free_dictionary(tiny_store)
    detector, _ = make_detector(tiny_store, plan_of(axes, 3, guides=guides))
    for guide in detector.layers.values():
        torch.testing.assert_close(codes_of(guide) @ guide.atoms, vectors_of(guide))
        assert (guide.atoms.abs().sum(dim=1) == 1).all()


def test_scores_of_a_method_name_it_and_are_judged_as_all_others(tiny_store, tmp_path):
    about = {"method": "intra-image dissimilarity", "supervision": "nothing"}
    scores = score_patchwise(dissimilarity(), tiny_store, tmp_path / "s", **about)
    assert scores.record.supervision == "nothing"
    table = evaluate_scores(scores, tiny_store, MetricParams()).table
    assert table.context.method == "intra-image dissimilarity"
    assert 0 <= table.mean.metrics["pixel_auroc"] <= 1
    alone = values_of(dissimilarity(), tiny_store, [7])
    for layer, values in scores.patches(np.array([7])).items():
        np.testing.assert_allclose(values.flatten(1), alone[layer], atol=1e-6)
