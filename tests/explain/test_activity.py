"""What latents do on a store, against every value kept and sorted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spg_pipe.errors import SpgError
from spg_pipe.explain.activity import TOP, Activity
from spg_pipe.explain.codes import Active, projection_code, sae_code
from spg_pipe.explain.groups import GROUPS, deal
from spg_pipe.explain.histograms import BINS, Bins, binned_precision
from spg_pipe.explain.measure import Measure, Rebuild, measure
from spg_pipe.report.examples import weighted_precision
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images

LAYER = "1"


@pytest.fixture(scope="module")
def activity(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Activity:
    sae = tiny_sae.layers[LAYER]
    rebuild = Rebuild(sae.atoms.detach(), lambda x: x)
    asked = Measure(LAYER, sae_code(sae, "none"), 32, rebuild=rebuild)
    return measure([tiny_store], [asked])[0]


@pytest.fixture(scope="module")
def dense_code(tiny_store: FeatureStore, tiny_sae: SaeRun) -> np.ndarray:
    """(images, patches, latents)"""
    sae = tiny_sae.layers[LAYER]
    tokens = tokens_of(tiny_store)
    with torch.no_grad():
        return sae.code(tokens.flatten(0, 1) @ sae.encoder.t()).view(*tokens.shape[:2], -1).numpy()


def tokens_of(store: FeatureStore) -> torch.Tensor:
    return torch.from_numpy(store.tokens(LAYER, np.arange(len(store)))).float()


def shares_of(store: FeatureStore) -> np.ndarray:
    masks = torch.from_numpy(store.masks(np.arange(len(store)))).float()[:, None]
    return F.adaptive_avg_pool2d(masks, (4, 4)).flatten(1).numpy()


def chosen_by(store: FeatureStore, category: str | None) -> np.ndarray:
    rows = np.arange(len(store))
    return rows if category is None else rows[store.array("category") == category]


@pytest.fixture(scope="module")
def counted_as(activity: Activity, dense_code: np.ndarray) -> np.ndarray:
    """The dense code with the number of its bin in the place of each value; 0 for none."""
    z = torch.from_numpy(dense_code.copy()).flatten(0, 1)
    token, latent = torch.nonzero(z, as_tuple=True)
    bins = bins_of(z, activity)
    z[token, latent] = 1 + (bins.cells(Active(token, latent, z[token, latent])) % BINS).float()
    return z.view(dense_code.shape).numpy()


def bins_of(z: torch.Tensor, activity: Activity) -> Bins:
    """All images of the small store are in the sample."""
    largest = z.amax(dim=0)
    return Bins.of(largest, largest.masked_fill(largest == 0, torch.nan), logarithmic=True)


@pytest.mark.parametrize("category", [None, "bolt", "nut"])
def test_precision_is_that_of_all_binned_values(
    activity: Activity, counted_as: np.ndarray, tiny_store: FeatureStore, category: str | None
) -> None:
    rows = np.intersect1d(chosen_by(tiny_store, category), labelled_images(tiny_store))
    share = shares_of(tiny_store)[rows].ravel()
    exact = [weighted_precision(z.ravel(), share) for z in counted_as[rows].transpose(2, 0, 1)]
    np.testing.assert_allclose(activity.average_precision(category), exact, atol=1e-6)
    assert activity.base_rate(category) == pytest.approx(share.mean())


def test_bins_move_the_precision_by_less_than_a_hundredth() -> None:
    rng = np.random.default_rng(0)
    share = np.where(rng.random(20_000) < 0.05, rng.random(20_000), 0)
    values = np.exp(0.3 * rng.normal(size=20_000) + share).astype(np.float32)
    values[rng.random(20_000) < 0.4] = 0
    token = torch.from_numpy(np.flatnonzero(values))
    entries = Active(token, torch.zeros_like(token), torch.from_numpy(values)[token])
    seen = torch.tensor([float(values[:2_000].max())])
    cells = Bins.of(seen, seen, logarithmic=True).cells(entries)
    weights = [None, torch.from_numpy(share)[token]]
    counts = np.stack([torch.bincount(cells, w, minlength=BINS).numpy() for w in weights])
    found = binned_precision(counts[:, None], np.array([20_000, share.sum()]))
    assert found == pytest.approx(weighted_precision(values, share), abs=0.01)


def test_each_category_and_label_is_dealt_evenly() -> None:
    categories, labels = np.repeat([0, 1], 100), np.tile([0, 1], 100)
    groups = deal(categories, labels)
    for category in (0, 1):
        for label in (0, 1):
            count = np.bincount(groups[(categories == category) & (labels == label)])
            assert count.max() - count.min() <= 1
    few = deal(np.zeros(GROUPS, int), np.arange(GROUPS) % 2)
    assert sorted(few) == list(range(GROUPS))


def test_rates_and_sums_are_those_of_the_dense_code(
    activity: Activity, dense_code: np.ndarray, tiny_store: FeatureStore
) -> None:
    fires, share = dense_code > 0, shares_of(tiny_store)
    rate, normal, anomalous = activity.rates()
    np.testing.assert_allclose(rate, fires.mean(axis=(0, 1)))
    known = np.isin(np.arange(len(tiny_store)), labelled_images(tiny_store))[:, None]
    for found, weight in ((normal, known * (1 - share)), (anomalous, known * share)):
        expected = (weight[..., None] * fires).sum(axis=(0, 1)) / weight.sum()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(activity.total.sum(axis=0), dense_code.sum(axis=(0, 1)), rtol=1e-5)


def test_top_patches_are_the_largest_of_their_images(
    activity: Activity, dense_code: np.ndarray, tiny_store: FeatureStore
) -> None:
    for category in (None, "bolt"):
        rows, best = chosen_by(tiny_store, category), activity.best(category)
        highest = dense_code[rows].max(axis=1)
        for latent in range(dense_code.shape[2]):
            values = np.sort(highest[:, latent])[::-1][:TOP]
            values = np.where(values > 0, values, -np.inf)
            np.testing.assert_allclose(best.value[latent], values, rtol=1e-5)
            there = np.isfinite(best.value[latent])
            places = best.image[latent][there], best.patch[latent][there], latent
            np.testing.assert_allclose(dense_code[places], best.value[latent][there], rtol=1e-5)
            assert len(set(best.image[latent][there])) == there.sum()


def test_what_is_rebuilt_is_what_the_sae_rebuilds(
    activity: Activity, tiny_sae: SaeRun, tiny_store: FeatureStore
) -> None:
    x = tokens_of(tiny_store).flatten(0, 1)
    x_hat = tiny_sae.layers[LAYER](x).x_hat
    assert activity.rebuilt.error.sum() == pytest.approx(
        float((x - x_hat).square().sum()), rel=1e-5
    )
    assert activity.rebuilt.squares.sum() == pytest.approx(float(x.square().sum()), rel=1e-5)
    cosine = F.cosine_similarity(x, x_hat, dim=1).sum()
    assert activity.rebuilt.cosine.sum() == pytest.approx(float(cosine), rel=1e-5)


def test_projections_of_any_sign_are_ranked_as_they_are(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    vectors = -tiny_sae.layers[LAYER].atoms.detach()[:3]
    asked = Measure(LAYER, projection_code(vectors), 3, dense=True)
    (found,) = measure([tiny_store], [asked])
    products = F.normalize(tokens_of(tiny_store), dim=-1) @ vectors.t()
    rows = labelled_images(tiny_store)
    share = shares_of(tiny_store)[rows].ravel()
    exact = [
        weighted_precision(p.ravel(), share) for p in products[rows].numpy().transpose(2, 0, 1)
    ]
    np.testing.assert_allclose(found.average_precision(), exact, atol=5e-3)
    highest = products.amax(dim=1).sort(dim=0, descending=True).values[:TOP].t()
    np.testing.assert_allclose(found.best().value, highest, rtol=1e-5)


def test_an_interval_holds_the_precision_and_is_that_of_drawn_images(activity: Activity) -> None:
    low, high = activity.interval()
    middle = activity.average_precision()
    assert (low <= middle + 1e-9).all()
    assert (middle <= high + 1e-9).all()
    some = np.array([3, 20])
    np.testing.assert_array_equal(activity.interval(latents=some), (low[some], high[some]))


def test_without_a_defect_there_is_no_precision() -> None:
    counts, patches = np.ones((2, 3, BINS)), np.array([500.0, 0.0])
    counts[1] = 0
    assert np.isnan(binned_precision(counts, patches)).all()


def test_counts_that_do_not_fit_into_memory_are_refused_before_the_work(
    tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = 2 * GROUPS * 2 * 32 * BINS * 4  # two categories, float32
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2 * counts - 1))
    read = list[torch.Tensor]()
    with pytest.raises(SpgError, match=r"2 categories would take .* --split"):
        measure([tiny_store], [Measure(LAYER, read.append, 32)])
    assert read == []


def test_several_stores_are_one_set_with_the_datasets_names(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    sae = tiny_sae.layers[LAYER]
    asked = Measure(LAYER, sae_code(sae, "none"), 32)
    (twice,) = measure([tiny_store] * 2, [asked])
    assert twice.categories == ("parts/bolt", "parts/nut")
    assert twice.images.tolist() == [16, 16]
    assert set(twice.best().source.ravel()) == {0, 1}
