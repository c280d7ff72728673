"""Contrast guides: sums, directions, and their match by signed atoms (docs/method.md §7)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SHAPES, SIZE

from spg_pipe.guides.contrast import FOLDS, ClassSums, class_sums, direction, match, signed_pursuit
from spg_pipe.guides.layer import LayerGuides, SignedAtoms
from spg_pipe.recipe.params import Detection
from spg_pipe.store.reader import FeatureStore


@pytest.fixture(scope="module")
def sums(tiny_store: FeatureStore) -> ClassSums:
    return class_sums(tiny_store, "mean_tokens")


def unit_tokens(store: FeatureStore, layer: str, image: int) -> np.ndarray:
    tokens = store.tokens(layer, np.array([image]))[0].astype(np.float64)
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def shares(store: FeatureStore, layer: str, image: int) -> np.ndarray:
    """Defective share of each patch's pixels, row by row."""
    patch = SHAPES[layer][0]
    side = SIZE // patch
    mask = store.masks(np.array([image]))[0].reshape(side, patch, side, patch)
    return mask.mean(axis=(1, 3)).ravel().astype(np.float64)


@pytest.mark.parametrize("detection", ["cls", "mean_tokens"])
@pytest.mark.parametrize("layer", list(SHAPES))
def test_sums_are_those_of_unit_tokens_weighted_by_what_is_defective(
    tiny_store: FeatureStore, layer: str, detection: Detection
) -> None:
    sums = class_sums(tiny_store, detection)
    assert sums.views == (detection, "patches")
    found, seen = sums.layers[layer], set()
    for image in range(len(tiny_store)):
        tokens, share = unit_tokens(tiny_store, layer, image), shares(tiny_store, layer, image)
        row = tiny_store.table.iloc[image]
        taught = row["mask_state"] != 2  # a defect without a mask says nothing about patches
        seen.add((int(row["label"]), bool(taught)))
        normal = (share == 0) & taught
        np.testing.assert_allclose(found.patches[image, 0], tokens[normal].sum(0), atol=1e-5)
        assert found.counts[image, 0] == normal.sum()
        anomalous = (tokens * share[:, None] * taught).sum(0)
        np.testing.assert_allclose(found.patches[image, 1], anomalous, atol=1e-5)
        assert found.counts[image, 1] == pytest.approx((share * taught).sum(), abs=1e-5)
        read = tiny_store.cls if detection == "cls" else tiny_store.tokens
        feature = (
            read(layer, np.array([image]))[0]
            .astype(np.float64)
            .reshape(-1, tokens.shape[1])
            .mean(0)
        )
        unit = feature / np.linalg.norm(feature)
        np.testing.assert_allclose(found.features[image], unit, atol=1e-5)
    assert seen == {(0, True), (1, True), (1, False)}


def test_every_kind_of_image_is_dealt_over_the_folds(
    tiny_store: FeatureStore, sums: ClassSums
) -> None:
    for (_, _), group in tiny_store.table.groupby(["category", "label"]):
        folds = sums.folds[group.index]
        assert sorted(folds) == list(range(min(FOLDS, len(group))))


def test_a_direction_leads_from_the_normal_to_the_anomalous_mean(sums: ClassSums) -> None:
    found = direction(sums, "1", "mean_tokens")
    values, means = sums.layers["1"].features.double(), []
    for label in (0, 1):
        each = [
            values[torch.from_numpy((sums.labels == label) & (sums.categories == c))].mean(0)
            for c in (0, 1)
        ]
        mean = torch.stack(each).mean(0)
        means.append(mean / mean.norm())
    torch.testing.assert_close(found.double(), means[1] - means[0], atol=1e-6, rtol=0)


def test_a_category_of_one_class_does_not_turn_the_direction(sums: ClassSums) -> None:
    """Otherwise it would lead from one product to the other."""
    labels = sums.labels.copy()
    alone = sums.categories == 1
    labels[alone & (labels == 0)] = 255
    found = direction(replace(sums, labels=labels), "1", "mean_tokens")
    expected = direction(sums, "1", "mean_tokens", ~alone)
    assert found.equal(expected)


def test_without_a_category_of_both_classes_there_is_no_direction(sums: ClassSums) -> None:
    labels = np.where(sums.categories == 0, 0, 1)
    assert not direction(replace(sums, labels=labels), "1", "mean_tokens").any()
    nothing = direction(sums, "1", "patches", np.zeros(len(labels), bool))
    assert not nothing.any()
    assert (
        len(match(nothing, dictionary(24, 12, 0), torch.zeros(24, dtype=torch.bool), 4).atom_ids)
        == 0
    )


def test_only_the_chosen_images_teach(sums: ClassSums) -> None:
    chosen = sums.folds != 0
    before = direction(sums, "1", "patches", chosen)
    layer = sums.layers["1"]
    noise = torch.where(torch.from_numpy(chosen)[:, None, None], layer.patches, layer.patches + 5)
    changed = replace(sums, layers={"1": replace(layer, patches=noise)})
    after, everything = (direction(changed, "1", "patches", c) for c in (chosen, None))
    assert before.equal(after)
    assert not everything.equal(before)


def dictionary(latents: int, dim: int, seed: int) -> torch.Tensor:
    atoms = torch.randn(latents, dim, generator=torch.Generator().manual_seed(seed))
    return atoms / atoms.norm(dim=1, keepdim=True)


@given(seed=st.integers(0, 999), count=st.integers(1, 12))
def test_codes_are_not_negative_and_more_atoms_match_better(seed: int, count: int) -> None:
    atoms = dictionary(24, 12, seed)
    target = torch.randn(12, generator=torch.Generator().manual_seed(seed + 1))

    def rest(k: int) -> float:
        pair = signed_pursuit(target, atoms, k)
        assert len(pair.atom_ids) == len(set(pair.atom_ids.tolist())) <= k
        assert (pair.codes >= 0).all()
        assert ((pair.codes > 0).sum(dim=0) <= 1).all()
        normal, anomaly = pair.codes @ atoms[pair.atom_ids]
        return float((target - (anomaly - normal)).norm())

    assert rest(count + 1) <= rest(count) + 1e-5
    assert rest(count) < float(target.norm())


def test_a_mixture_of_few_atoms_is_found_with_its_signs() -> None:
    atoms = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    weights = torch.zeros(16)
    weights[[2, 5, 11]] = torch.tensor([1.5, -0.5, 0.25])
    pair = signed_pursuit(weights @ atoms, atoms, 8)
    assert pair.atom_ids.tolist() == [2, 5, 11]  # and it stops where nothing is left
    torch.testing.assert_close(
        pair.codes, torch.tensor([[0.0, 0.5, 0.0], [1.5, 0.0, 0.25]]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("count", "dim"), [(3, 12), (12, 12), (40, 12)])
def test_the_basis_is_orthonormal_and_spans_the_atoms(count: int, dim: int) -> None:
    atoms = dictionary(64, dim, 3)
    ids = torch.arange(0, count)
    codes = torch.rand(2, count) + 0.1
    guides = LayerGuides.of_contrast({"patches": SignedAtoms(ids, codes)}, atoms, (4, 4))
    basis = guides.basis
    assert basis.shape == (dim, min(count, dim))
    torch.testing.assert_close(basis.t() @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(guides.atoms @ basis @ basis.t(), guides.atoms, atol=1e-5, rtol=0)


def test_a_view_without_a_pair_changes_no_other() -> None:
    atoms = dictionary(24, 12, 5)
    patches, whole = (signed_pursuit(target, atoms, 4) for target in dictionary(2, 12, 6))
    both = LayerGuides.of_contrast({"cls": whole, "patches": patches}, atoms, (4, 4))
    alone = LayerGuides.of_contrast({"patches": patches}, atoms, (4, 4))
    assert list(both.pairs) == ["cls", "patches"]
    torch.testing.assert_close(both.pairs["patches"].vectors, alone.pairs["patches"].vectors)
    assert alone.atom_ids.tolist() == patches.atom_ids.tolist()
