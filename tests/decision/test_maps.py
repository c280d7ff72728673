"""Full-size maps as matrix products (docs/method.md §4), held to scipy's filter over the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from spg_pipe.decision.maps import anomaly_maps, finished, raw_maps, resize_maps, shown_range


def random_patches(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pixel_by_pixel(patches: dict[str, torch.Tensor], size: int, sigma: float) -> np.ndarray:
    """Upsample, average, filter every image with scipy."""
    each = [
        F.interpolate(p[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
        for p in patches.values()
    ]
    raw = torch.stack(each).mean(dim=0).numpy()
    return np.stack([gaussian_filter(one, sigma, mode="reflect", truncate=4.0) for one in raw])


def test_layers_of_different_grids_are_averaged_at_full_size() -> None:
    one, two = random_patches(2, 4, 4), random_patches(2, 7, 3, seed=1)
    maps = raw_maps({"a": one, "b": two}, 21)
    each = [
        F.interpolate(p[:, None], (21, 21), mode="bilinear", align_corners=False)[:, 0]
        for p in (one, two)
    ]
    torch.testing.assert_close(maps, (each[0] + each[1]) / 2, atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    # Down to maps that are smaller than the kernel, where it is reflected many times.
    size=st.integers(1, 70),
    sigma=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.3, 4.0, 9.7, 40.0]),
    grids=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_the_matrices_are_scipys_filter_over_the_upsampled_maps(
    size: int, sigma: float, grids: list[tuple[int, int]], seed: int
) -> None:
    patches = {
        str(number): random_patches(2, *grid, seed=seed + number)
        for number, grid in enumerate(grids)
    }
    maps = anomaly_maps(patches, size, sigma)
    assert (maps.dtype, maps.shape) == (np.float32, (2, size, size))
    np.testing.assert_allclose(maps, pixel_by_pixel(patches, size, sigma), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [448, 518])
def test_a_map_of_the_published_size_is_scipys(size: int) -> None:
    # Saturated at both ends, as maps at τ = 0.07 are: what is small must stay right as well.
    patches = {"24": torch.sigmoid(30 * (random_patches(2, size // 16, size // 16) - 0.7))}
    maps, expected = anomaly_maps(patches, size), pixel_by_pixel(patches, size, 4.0)
    np.testing.assert_allclose(maps, expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=0)


@given(images=st.integers(2, 9), sigma=st.sampled_from([0.0, 4.0]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_a_map_does_not_depend_on_the_images_beside_it(
    images: int, sigma: float, seed: int
) -> None:
    patches = random_patches(images, 7, 5, seed=seed)
    together = anomaly_maps({"a": patches}, 56, sigma, (61, 80))
    for i in range(images):
        alone = anomaly_maps({"a": patches[i : i + 1]}, 56, sigma, (61, 80))
        assert np.array_equal(together[i], alone[0])


@settings(deadline=None, max_examples=20)
@given(height=st.integers(1, 120), width=st.integers(1, 120))
def test_maps_at_an_own_size_are_the_blurred_ones_resized(height: int, width: int) -> None:
    patches = {"a": random_patches(2, 6, 4), "b": random_patches(2, 3, 3, seed=1)}
    blurred = torch.from_numpy(anomaly_maps(patches, 48))
    expected = F.interpolate(blurred[:, None], (height, width), mode="bilinear")[:, 0].numpy()
    found = anomaly_maps(patches, 48, at=(height, width))
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(resize_maps(blurred.numpy(), (height, width)), found, atol=1e-6)


def test_saturated_maps_stay_between_0_and_1() -> None:
    for value in (0.0, 1.0):
        maps = anomaly_maps({"a": torch.full((1, 28, 28), value)}, 448, at=(700, 900))
        assert maps.dtype == np.float32
        assert (maps == value).all()


def test_heat_maps_of_log_odds_spend_their_colours_on_what_stands_out() -> None:
    """An ordinary patch has log odds about 0: half of the scale of a probability."""
    assert shown_range(log_odds=False) == (0.0, 1.0)
    low, high = shown_range(log_odds=True)
    grids = {"1": torch.tensor([[[0.0, 0.0], [0.0, 6.0]]])}
    (finished,) = anomaly_maps(grids, 8, 0.0, log_odds=True)
    assert finished[0, 0] < low < high < finished[-1, -1] <= 1


def test_finished_maps_keep_the_order_of_log_odds_of_any_size() -> None:
    """A bank's distances on a uniform product reach hundreds of deviations, far above and below."""
    far = 1.1 ** np.arange(-60, 120)  # 0.003 … 84,000
    odds = torch.from_numpy(np.r_[-far[::-1], 0, far, 1e30].astype(np.float32))[None]
    (maps,) = anomaly_maps({"1": odds[None]}, len(odds[0]), 0.0, log_odds=True)
    assert maps.min() > 0
    assert maps.max() <= 1
    assert (np.diff(maps[0]) > 0).all()
    assert maps[0, 180] == 0.5
    near = torch.tensor([[200.0, 200.05, 1000.0, 1000.3]])
    (row,) = finished(near.double()).float().tolist()
    assert row == sorted(set(row))
