"""A bank is its formulas (docs/method.md §9), and refuses what makes no bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import bank_of_store, bank_of_tokens, extracted, manifest_of, write_folder

from spg_pipe.bank import memory, normal_patches
from spg_pipe.bank.memory import CORESET, MemoryBank
from spg_pipe.bank.normal_patches import SAME, Grids, Tokens, are_among, mean_tokens, read_normals
from spg_pipe.decision.model import coarse_maps, top_mean
from spg_pipe.errors import SpgError
from spg_pipe.guides.model import unit
from spg_pipe.recipe.params import BankParams
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "CORESET", params.pop("coreset", CORESET))
        return bank_of_store(store, rows, BankParams.model_validate(params))


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
    tiny_store, normals, neighbours
):
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
    tops = [top_mean(coarse_maps(grids, 32), 0.1) for grids in (found.patches, apart)]
    np.testing.assert_allclose(found.top, tops[0] - tops[1].mean(), atol=2e-3)
    assert not found.known.any()


def test_of_one_image_the_scale_is_that_of_its_patches_from_other_places_of_it() -> None:
    """Neighbours are left out: they are alike, however many images there are."""
    tokens = aligned(40)
    bank = bank_of_tokens(tokens, 1, BankParams(top_share=0.05))
    patches = unit(tokens(np.array([0]))[0]["1"][0, 1:])
    away = [
        1 - max(float(x @ y) for j, y in enumerate(patches) if max(abs(np.subtract(*at(i, j)))) > 2)
        for i, x in enumerate(patches)
    ]
    assert bank.scales["1"].mean == pytest.approx(np.mean(away), abs=1e-5)
    assert bank.scales["1"].deviation == pytest.approx(np.std(away, ddof=1), abs=1e-5)
    assert (bank.images, len(bank.tops), bank.apart.tolist()) == (1, 1, [0])
    assert bank.distances(tokens(np.array([0, 1]))[0]).known.tolist() == [True, False]


def at(*numbers: int) -> np.ndarray:
    """Places (k, 2) of patches in a grid of 8 by 8."""
    return np.stack(np.divmod(np.array(numbers), 8), axis=1)


def test_a_coreset_is_smaller_and_judged_by_its_own_scale(tiny_store, normals, monkeypatch):
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


def aligned(count: int) -> normal_patches.TokensOf:
    """Images that differ by noise alone: 64 places, each with a token of its own."""
    places = torch.randn(65, 16, generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.randn(count, 65, 16, generator=torch.Generator().manual_seed(1))
    return lambda chosen: ({"1": places + noise[torch.from_numpy(chosen)]}, {"1": (8, 8)})


@pytest.mark.parametrize("coreset", [256, 10_000])
def test_other_normal_images_have_mean_0_deviation_1_and_no_top(coreset, monkeypatch):
    """Also with a coreset, which lies nearer to the images that it was chosen from."""
    monkeypatch.setattr(memory, "CORESET", coreset)
    tokens = aligned(80)
    bank = bank_of_tokens(tokens, 40, BankParams(top_share=0.05))
    assert bank.images == 40
    others = bank.distances(tokens(np.arange(40, 80))[0])
    assert float(others.patches["1"].mean()) == pytest.approx(0, abs=0.1)
    assert float(others.patches["1"].std()) == pytest.approx(1, abs=0.1)
    assert others.top.mean() == pytest.approx(0, abs=0.15)
    own = bank.distances(tokens(np.arange(40))[0])
    assert own.known.all()  # those that only gave the scale, too


def test_a_coreset_leaves_a_quarter_of_the_images_to_the_scale(monkeypatch):
    tokens, covered = aligned(80), list[int]()

    def first(patches: torch.Tensor, keep: int) -> torch.Tensor:
        covered.append(len(patches) // 64)
        return torch.arange(keep)

    monkeypatch.setattr(memory, "farthest_first", first)
    monkeypatch.setattr(memory, "CORESET", 64)
    for n in (3, 8, 80):
        bank_of_tokens(tokens, n, BankParams())
    assert [len(memory.evenly(n, held_out=True)) for n in (3, 8, 80)] == [1, 2, 16]
    assert covered == [2, 6, 64]


def test_copies_are_left_out_and_do_not_change_the_scale(normals: FeatureStore) -> None:
    bank = bank_of(normals, np.array([0, 1, 1, 3, 0]))
    without = bank_of(normals, np.array([0, 1, 3]))
    assert (bank.images, bank.copies) == (3, 2)
    assert (without.images, without.copies) == (3, 0)
    assert bank.scales == without.scales
    assert bank.map_top == without.map_top


def test_of_very_many_patches_each_image_gives_its_share(normals, monkeypatch):
    monkeypatch.setattr(normal_patches, "CANDIDATES", 30)
    reads: list[list[int]] = []

    def tokens(rows: np.ndarray) -> tuple[Tokens, Grids]:
        reads.append(rows.tolist())
        grids = {"1": normals.spec.layers["1"].grid}
        return {"1": image_tokens(normals, "1", rows)}, grids

    first, again = (read_normals(tokens, 6) for _ in range(2))
    torch.testing.assert_close(first.patches["1"], again.patches["1"], rtol=0, atol=0)
    assert first.patches["1"].untyped_storage().nbytes() == 30 * 12 * 4  # nothing else is held
    everything = unit_tokens(normals, "1", ALL)
    for image in ALL.tolist():
        own = first.patches["1"][first.rows_of("1", image)].numpy()
        assert len(own) == 5
        nearest_own = (own @ everything[image].T).max(axis=1)
        np.testing.assert_allclose(nearest_own, 1, atol=1e-5)
        whole = first.whole(tokens, image)["1"].numpy()
        np.testing.assert_allclose(whole, everything[image], atol=1e-5)
    assert reads[-6:] == [[image] for image in ALL]  # read again, one by one


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_image_is_known_again_in_another_batch_and_a_near_one_is_not(normals, tmp_path, dtype):
    folder = write_folder(tmp_path / "p", ("bolt",), good=6, masked=0, missing=0, seed=7)
    stores = [
        extracted(manifest_of(folder), tmp_path / f"{n}.zarr", dtype=dtype, batch_images=n)
        for n in (1, 5)
    ]
    one, other = (mean_tokens(store, ALL) for store in stores)
    assert are_among(one, other).all()
    assert ((one - other).norm(dim=1) < SAME / 10 * one.norm(dim=1)).all()
    assert not are_among(one * (1 + 8e-4), one).any()  # as near as photographs in tiles come


def test_an_image_of_the_bank_itself_is_known_again(tiny_store, normals):
    bank = bank_of(normals, np.array([0, 2, 3]), coreset=10)
    known = bank.distances(tokens_of(normals, [0, 1, 2, 3])).known
    assert np.flatnonzero(known).tolist() == [0, 2, 3]
    assert not bank.distances(tokens_of(tiny_store, list(range(16)))).known.any()


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ([0], {"neighbours": 17}, "bank.neighbours is 17. Lower bank.neighbours"),
        ([0, 1], {"neighbours": 17}, "bank.neighbours is 17. Lower bank.neighbours"),
        ([0, 1], {"coreset": 2, "neighbours": 3}, "or give more normal images"),
    ],
)
def test_what_makes_no_bank_is_refused(normals, rows, params, message):
    with pytest.raises(SpgError, match=message):
        bank_of(normals, np.array(rows), **params)
