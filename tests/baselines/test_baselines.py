"""Baselines are their formulas, and say what they saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import METHOD, SCORE, extracted, manifest_of, write_folder

from spg_pipe.baselines.free import free_dictionary
from spg_pipe.baselines.linear import logistic_regression
from spg_pipe.baselines.mutual import mutual_scoring
from spg_pipe.baselines.normals import (
    NormalBank,
    mahalanobis,
    nearest_neighbours,
    score_fused,
)
from spg_pipe.baselines.patchwise import Method, score_patchwise
from spg_pipe.baselines.unsupervised import dissimilarity
from spg_pipe.detector_training import train_guides
from spg_pipe.errors import SpgError
from spg_pipe.evaluation import evaluate_scores
from spg_pipe.params import GuideParams, MetricParams, ScoreParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.scoring import score_store
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Four normal images of each category, other ones than the store's."""
    root = tmp_path_factory.mktemp("normals")
    folder = write_folder(root / "parts", masked=0, missing=0, seed=7)
    return extracted(manifest_of(folder), root / "x.zarr")


def unit_tokens(store: FeatureStore, layer: str, images: list[int]) -> np.ndarray:
    tokens = store.tokens(layer, np.array(images)).astype(np.float64)
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def values_of(method: Method, store: FeatureStore, images: list[int]) -> dict[str, np.ndarray]:
    rows = np.array(images)
    tokens = {layer: image_tokens(store, layer, rows) for layer in store.layers}
    return {layer: v.double().numpy() for layer, v in method.values(tokens, rows).items()}


def test_dissimilarity_is_the_distance_from_the_mean_patch(tiny_store: FeatureStore) -> None:
    found = values_of(dissimilarity(), tiny_store, [3, 8])
    for layer, values in found.items():
        x = unit_tokens(tiny_store, layer, [3, 8])
        expected = 1 - np.einsum("bnd,bd->bn", x, x.mean(axis=1))
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_bank_gives_the_distance_to_the_nearest_normal_patch(
    tiny_store: FeatureStore, normals: FeatureStore
) -> None:
    bank = NormalBank.of(normals)
    found = values_of(nearest_neighbours(bank), tiny_store, [0, 5])
    for layer, values in found.items():
        known = unit_tokens(normals, layer, list(range(8)))
        x = unit_tokens(tiny_store, layer, [0, 5])
        distance = 1 - (x @ known.reshape(-1, known.shape[-1]).T).max(axis=-1)
        others = [
            1 - (known[i] @ np.delete(known, i, 0).reshape(-1, known.shape[-1]).T).max(axis=-1)
            for i in range(8)
        ]
        expected = (distance - np.mean(others)) / np.std(others, ddof=1)
        np.testing.assert_allclose(values, expected, atol=1e-3)


def test_a_bank_of_one_image_or_of_defects_is_refused(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "one", ("bolt",), good=1, masked=0, missing=0)
    with pytest.raises(SpgError, match="at least two normal images"):
        NormalBank.of(extracted(manifest_of(folder), tmp_path / "one.zarr"))
    with pytest.raises(SpgError, match="anomalous images"):
        NormalBank.of(tiny_store)


def test_mahalanobis_is_that_of_scikit_learn(
    tiny_store: FeatureStore, normals: FeatureStore
) -> None:
    from sklearn.covariance import LedoitWolf

    found = values_of(mahalanobis(normals), tiny_store, [2])
    known = unit_tokens(normals, "1", list(range(8))).reshape(-1, 12)
    squared = LedoitWolf().fit(known).mahalanobis(unit_tokens(tiny_store, "1", [2])[0])
    np.testing.assert_allclose(found["1"][0], np.sqrt(squared / 12), rtol=1e-3)


def test_images_of_the_target_judge_each_other_but_never_themselves(
    tiny_store: FeatureStore,
) -> None:
    method = mutual_scoring(tiny_store, seed=0, images=15)
    found = values_of(method, tiny_store, [4])["2"][0]
    x = unit_tokens(tiny_store, "2", list(range(16)))
    distances = [1 - (x[4] @ x[other].T).max(axis=1) for other in range(16) if other != 4]
    nearest = np.sort(distances, axis=0)[: int(0.3 * 15)]
    np.testing.assert_allclose(found, nearest.mean(axis=0), atol=1e-5)
    assert "transductive" in method.sees


def test_logistic_regression_tells_the_classes_that_it_was_fitted_on(
    tiny_store: FeatureStore,
) -> None:
    method = logistic_regression(tiny_store, seed=0)
    assert (method.sees, method.auxiliary) == ("labelled auxiliary set", "parts")
    masks = tiny_store.masks(np.arange(16)).reshape(16, 4, 8, 4, 8).mean(axis=(2, 4))
    values = values_of(method, tiny_store, list(range(16)))["1"]
    taught = (tiny_store.array("mask_state") != 2)[:, None]
    defective, normal = (c.reshape(16, 16) & taught for c in (masks > 0.5, masks == 0))
    assert values[defective].mean() > 0 > values[normal].mean()


def test_free_guides_are_any_vectors(tiny_store: FeatureStore) -> None:
    guides = GuideParams(kind="trained", epochs=1, batch_images=4)
    axes = free_dictionary(tiny_store)
    detector, _ = train_guides(tiny_store, axes, guides, METHOD, SCORE, seed=3)
    for guide in detector.layers.values():
        torch.testing.assert_close(guide.atom_codes @ guide.atoms, guide.vectors)
        assert (guide.atoms.abs().sum(dim=1) == 1).all()


def test_scores_of_a_method_name_it_and_are_judged_as_all_others(
    tiny_store: FeatureStore, tmp_path: Path
) -> None:
    scores = score_patchwise(dissimilarity(), tiny_store, tmp_path / "s", sigma=1.0)
    assert scores.config["sees"] == "nothing"
    row = evaluate_scores(scores, tiny_store, MetricParams()).rows[-1]
    assert row["method"] == "intra-image dissimilarity"
    assert 0 <= row["pixel_auroc"] <= 1
    tokens = {layer: image_tokens(tiny_store, layer, np.array([7])) for layer in ("1", "2")}
    alone = dissimilarity().values(tokens, np.array([7]))
    for layer, values in scores.patches(np.array([7])).items():
        torch.testing.assert_close(values.flatten(1), alone[layer], atol=1e-6, rtol=0)


def test_a_fused_score_is_the_zero_shot_one_and_the_banks_share(
    tiny_store: FeatureStore, tiny_sae: SaeRun, normals: FeatureStore, tmp_path: Path
) -> None:
    given = GuideParams(atoms=6), METHOD, ScoreParams(sigma=1.0)
    detector = train_guides(tiny_store, tiny_sae, *given, seed=1)[0]
    bank = NormalBank.of(normals, sigma=1.0)
    fused = score_fused(detector, bank, tiny_store, tmp_path / "fused")
    alone = score_store(detector, tiny_store, tmp_path / "alone")
    expected = alone.table["score"] + fused.table["share_bank"]
    np.testing.assert_allclose(fused.table["score"], expected, atol=1e-6)
    assert fused.config["sees"] == "few-shot: 8 normal images of the target"
    images = np.arange(3)
    tokens = image_tokens(tiny_store, "1", images)
    added = bank.standard("1", tokens).reshape(3, 4, 4)
    found = fused.patches(images)["1"] - alone.patches(images)["1"]
    torch.testing.assert_close(found, added, atol=1e-4, rtol=0)


def test_a_fused_score_goes_on_from_the_banks_own_scores(
    tiny_store: FeatureStore, tiny_sae: SaeRun, normals: FeatureStore, tmp_path: Path
) -> None:
    given = GuideParams(atoms=6), METHOD, ScoreParams(sigma=1.0)
    detector = train_guides(tiny_store, tiny_sae, *given, seed=1)[0]
    bank = NormalBank.of(normals, sigma=1.0)
    known = score_patchwise(nearest_neighbours(bank), tiny_store, tmp_path / "bank", sigma=1.0)
    whole = score_fused(detector, bank, tiny_store, tmp_path / "whole")
    found = score_fused(detector, bank, tiny_store, tmp_path / "found", known=known)
    np.testing.assert_allclose(found.table["score"], whole.table["score"], atol=1e-6)
    every = np.arange(len(tiny_store))
    for layer, patches in found.patches(every).items():
        torch.testing.assert_close(patches, whole.patches(every)[layer], atol=1e-6, rtol=0)
    other = score_patchwise(dissimilarity(), tiny_store, tmp_path / "other")
    with pytest.raises(SpgError, match="other normal images"):
        score_fused(detector, bank, tiny_store, tmp_path / "never", known=other)
