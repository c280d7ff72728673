"""A bank is its formulas (docs/method.md §9), and refuses what makes no bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import extracted, manifest_of, write_folder

from spg_pipe.bank import memory
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.decision.model import coarse_maps, top_mean
from spg_pipe.errors import SpgError
from spg_pipe.params import BankParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

ALL = np.arange(6)


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Six normal images, other ones than the store's."""
    root = tmp_path_factory.mktemp("normals")
    folder = write_folder(root / "parts", ("bolt",), good=6, masked=0, missing=0, seed=7)
    return extracted(manifest_of(folder), root / "x.zarr")


def bank_of(store: FeatureStore, rows: np.ndarray = ALL, **params: object) -> MemoryBank:
    return MemoryBank.of_store(store, rows, 1.0, BankParams.model_validate(params))


def unit_tokens(store: FeatureStore, layer: str, rows: np.ndarray) -> np.ndarray:
    tokens = store.tokens(layer, rows).astype(np.float64)
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def tokens_of(store: FeatureStore, rows: list[int]) -> dict[str, torch.Tensor]:
    return {layer: image_tokens(store, layer, np.array(rows)) for layer in store.layers}


def nearest(x: np.ndarray, known: np.ndarray, k: int) -> np.ndarray:
    """Mean distance of (…, D) to the k nearest of (…, D)."""
    products = x @ known.reshape(-1, known.shape[-1]).T
    return 1 - np.sort(products, axis=-1)[..., -k:].mean(axis=-1)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_distances_are_in_deviations_of_normal_images_from_each_other(
    tiny_store: FeatureStore, normals: FeatureStore, neighbours: int
) -> None:
    bank = bank_of(normals, neighbours=neighbours, top_share=0.1)
    found = bank.distances(tokens_of(tiny_store, [0, 5]))
    apart = {}
    for layer, values in found.patches.items():
        known = unit_tokens(normals, layer, ALL)
        others = np.stack([nearest(known[i], np.delete(known, i, 0), neighbours) for i in ALL])
        mean, deviation = others.mean(), others.std(ddof=1)
        raw = nearest(unit_tokens(tiny_store, layer, np.array([0, 5])), known, neighbours)
        np.testing.assert_allclose(values.flatten(1), (raw - mean) / deviation, atol=2e-3)
        grid = (len(others), *normals.spec.layers[layer].grid)
        apart[layer] = torch.from_numpy((others - mean) / deviation).float().reshape(grid)
    tops = [top_mean(coarse_maps(grids, 32, 1.0), 0.1) for grids in (found.patches, apart)]
    np.testing.assert_allclose(found.top, tops[0] - tops[1].mean(), atol=2e-3)
    assert not found.known.any()


def test_another_share_of_the_map_needs_no_new_bank(
    tiny_store: FeatureStore, normals: FeatureStore
) -> None:
    tokens = tokens_of(tiny_store, [3, 4])
    expected = bank_of(normals, top_share=0.2).distances(tokens)
    found = bank_of(normals, top_share=0.01).with_top_share(0.2).distances(tokens)
    np.testing.assert_array_equal(found.top, expected.top)


def test_a_coreset_is_smaller_and_judged_by_its_own_scale(
    tiny_store: FeatureStore, normals: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    search = memory.search_among
    monkeypatch.setattr(
        memory, "search_among", lambda v, device: kept.append(len(v)) or search(v, device)
    )
    small, whole = (bank_of(normals, coreset=keep) for keep in (20, 96))
    assert kept == [20, 20, 96, 24]  # layer 2 has 24 patches in all
    assert small.scales["1"].mean > whole.scales["1"].mean
    own = small.distances(tokens_of(normals, [0, 1, 2]))
    other = small.distances(tokens_of(tiny_store, [4, 5, 6]))  # painted defects
    assert own.patches["1"].mean() < other.patches["1"].mean()


def test_of_very_many_patches_each_image_gives_its_share(
    normals: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CANDIDATES", 30)

    def tokens(layer: str, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(normals.tokens(layer, rows)).float()

    for _ in range(2):
        kept, owners = memory._kept(tokens, "1", 6, 1000)
        assert torch.bincount(owners).tolist() == [5] * 6
        assert kept.shape == (30, 12)


def test_an_image_of_the_bank_itself_is_known_again(
    tiny_store: FeatureStore, normals: FeatureStore
) -> None:
    bank = bank_of(normals, np.array([0, 2, 3]), coreset=10)
    assert bank.distances(tokens_of(normals, [0, 1, 2, 3])).known.tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert not bank.distances(tokens_of(tiny_store, list(range(16)))).known.any()


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ([0], {}, "There is 1 normal image; a bank needs at least two"),
        ([1, 1], {}, "The 2 normal images are copies of each other"),
        ([0, 1], {"neighbours": 17}, "bank.neighbours is 17. Lower bank.neighbours"),
        ([0, 1], {"coreset": 1}, "raise bank.coreset"),
    ],
)
def test_what_makes_no_bank_is_refused(
    normals: FeatureStore, rows: list[int], params: dict[str, int], message: str
) -> None:
    with pytest.raises(SpgError, match=message):
        bank_of(normals, np.array(rows), **params)
