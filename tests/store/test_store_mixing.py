"""How near batches come to a shuffle of all tokens, against simulated shuffles."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.mixing import Mixing, measure_mixing
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource
from spg_pipe.store.stream import token_batches

CATEGORIES = np.repeat(["bolt", "nut", "washer"], [40, 15, 5])


def measured(**changes: int | None) -> Mixing:
    given = {"batch_tokens": 90, "batch_images": None, "window_images": 8}
    return measure_mixing(CATEGORIES, 10, **(given | {"seed": 1} | changes))  # type: ignore[arg-type]


def simulated(batch: int) -> dict[str, float]:
    """Means over shuffles of all tokens, under the names of what `Mixing` expects."""
    rng = np.random.default_rng(0)
    codes = np.unique(CATEGORIES, return_inverse=True)[1]
    draws = [np.bincount(rng.permutation(600)[:batch] // 10, minlength=60) for _ in range(3000)]
    return {
        "images_expected": float(np.mean([np.count_nonzero(draw) for draw in draws])),
        "effective_images_expected": 1 / float(np.mean([((d / batch) ** 2).sum() for d in draws])),
        "categories_expected": float(np.mean([len(set(codes[draw > 0])) for draw in draws])),
    }


@pytest.mark.parametrize("batch", [20, 90])
def test_expectations_are_those_of_a_shuffle_of_all_tokens(batch: int) -> None:
    found, expected = measured(batch_tokens=batch)._asdict(), simulated(batch)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0.01)


def test_one_window_of_all_images_is_a_shuffle_of_all_tokens() -> None:
    found = measured(window_images=60)
    assert found.images == pytest.approx(found.images_expected, rel=0.03)
    assert found.effective_images == pytest.approx(found.effective_images_expected, rel=0.05)
    assert found.categories == pytest.approx(found.categories_expected, rel=0.03)


def test_whole_images_mix_least() -> None:
    found = measured(batch_tokens=None, batch_images=4)
    assert found.images == found.effective_images == 4
    assert found.images_expected == pytest.approx(simulated(40)["images_expected"], rel=0.02)


def test_what_is_measured_is_what_is_streamed(tiny_store: FeatureStore) -> None:
    images = tiny_store.tokens("1", np.arange(16))
    source = TokenSource(tiny_store, "1")
    distinct = []
    for batch in token_batches(source, seed=4, epoch=0, batch_tokens=32, window_images=4):
        same = (batch.numpy()[:, None, None] == images[None]).all(-1)  # tokens × images × patches
        distinct.append(len(np.unique(np.nonzero(same)[1])))
    unit = {"batch_tokens": 32, "batch_images": None, "window_images": 4}
    found = measure_mixing(tiny_store.array("category"), 16, **unit, seed=4)
    assert found.images == pytest.approx(np.mean(distinct))
