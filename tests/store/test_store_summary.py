"""What `spg-pipe inspect` says about the tokens of a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shaped import shaped_store

from spg_pipe.datasets.manifest import Manifest
from spg_pipe.store import summary as module
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.summary import dimension_counts, largest_dims, summary, token_norms

DIM = 10
ZERO, CONSTANT, NEAR, MASSIVE = range(4)


def unusual(row: int) -> np.ndarray:
    """(6, 10): a dimension of zeros, a constant, a nearly constant and a massive one."""
    tokens = np.random.default_rng(row).normal(size=(6, DIM))
    tokens[:, ZERO] = 0
    tokens[:, CONSTANT] = 0.1
    tokens[:, NEAR] *= 1e-5
    tokens[:, MASSIVE] += 40
    return tokens


@pytest.fixture(scope="module", params=["float16", "float32"])
def unusual_store(
    tiny_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory, request: object
) -> FeatureStore:
    path = tmp_path_factory.mktemp("unusual") / "store.zarr"
    return shaped_store(tiny_manifest, path, unusual, request.param)  # type: ignore[attr-defined]


def test_dimensions_that_carry_nothing_are_counted(unusual_store: FeatureStore) -> None:
    layer = summary(unusual_store)["layers"]["1"]
    counts = {key: layer[key] for key in ("zero_dims", "constant_dims", "near_constant_dims")}
    assert counts == {"zero_dims": 1, "constant_dims": 2, "near_constant_dims": 1}


@pytest.mark.parametrize(
    ("mean", "std", "counts"),
    [
        ([0.0, 2.0, -1.0], [0.0, 0.0, 0.0], (1, 3, 0)),  # nothing varies
        ([500.0, 0.0, 1.0], [5e-6, 5e-6, 1.0], (0, 1, 1)),  # a rounded sum of squares
    ],
)
def test_counts_of_dimensions(mean: list[float], std: list[float], counts: tuple[int, ...]) -> None:
    assert tuple(dimension_counts(np.array(mean), np.array(std)).values()) == counts


def test_massive_dimensions_are_named_with_their_share(unusual_store: FeatureStore) -> None:
    tokens = unusual_store.tokens("1", np.arange(16)).astype(float).reshape(-1, DIM)
    squares = (tokens**2).mean(axis=0)
    shares = summary(unusual_store)["layers"]["1"]["largest_dims"]
    assert list(shares) == [str(dim) for dim in np.argsort(-squares)[:3]]
    assert next(iter(shares)) == str(MASSIVE)
    for dim, share in shares.items():
        assert share == pytest.approx(squares[int(dim)] / squares.sum(), rel=1e-9)
    assert shares[str(MASSIVE)] > 0.99
    assert largest_dims(np.zeros(4), np.zeros(4)) == {}


def test_norms_are_those_of_the_tokens_in_a_large_store_of_a_fixed_sample(tiny_store, monkeypatch):
    tokens = tiny_store.tokens("1", np.arange(16)).astype(np.float64).reshape(-1, 12)
    norms = np.sqrt((tokens**2).sum(axis=1))
    expected = {"mean": norms.mean(), "p05": np.quantile(norms, 0.05)}
    expected |= {"p95": np.quantile(norms, 0.95), "sampled_images": 16}
    assert summary(tiny_store)["layers"]["1"]["token_norms"] == pytest.approx(expected)
    asked: list[list[int]] = []
    read = FeatureStore.tokens

    def watched(self: FeatureStore, layer: str, images: np.ndarray) -> np.ndarray:
        asked.append(images.tolist())
        return read(self, layer, images)

    monkeypatch.setattr(FeatureStore, "tokens", watched)
    monkeypatch.setattr(module, "NORM_IMAGES", 5)
    first = summary(tiny_store)
    assert first["layers"]["2"]["token_norms"]["sampled_images"] == 5
    rows = [row for (row,) in asked]  # image by image
    assert rows[:5] == rows[5:]  # the same images of both layers
    assert len(set(rows)) == 5 < max(rows)  # spread, not the first ones
    assert summary(tiny_store) == first


def test_float16_norms_do_not_overflow(tiny_manifest: Manifest, tmp_path: Path) -> None:
    store = shaped_store(tiny_manifest, tmp_path / "s.zarr", lambda _: np.full((6, 4), 3e4))
    assert token_norms(store, "1", np.array([3])).tolist() == [2 * float(np.float16(3e4))] * 6
