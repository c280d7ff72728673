"""What is ignored gives nothing: maps, tops, self-distances, held to definitions pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from spg_pipe.decision.components import REACH, self_distance
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.maps import anomaly_maps, patch_weights
from spg_pipe.decision.model import coarse_maps, coarse_shares, top_mean, top_weights
from spg_pipe.decision.rules import image_scores
from spg_pipe.recipe.params import ImageScore

SIZE = 24
GRIDS = {"a": (6, 6), "b": (3, 4)}


def random_patches(seed: int, images: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: torch.randn((images, *grid), generator=generator) for layer, grid in GRIDS.items()
    }


def random_kept(seed: int, images: int = 2) -> Kept:
    """Squares of pixels that are ignored, kept, or both by a share."""
    rng = np.random.default_rng(seed)
    cells = rng.choice([0, 0, 1, 1, 0.4], size=(images, 4, 4)).astype(np.float32)
    cells[:, 0, 0] = 1
    return Kept(torch.from_numpy(np.kron(cells, np.ones((6, 6), np.float32))))


def by_hand(patches: dict[str, torch.Tensor], kept: Kept, sigma: float) -> np.ndarray:
    """Σ blurred (values · shares) over Σ blurred shares, pixel by pixel."""

    def blurred(grids: torch.Tensor) -> np.ndarray:
        large = F.interpolate(grids[:, None].double(), (SIZE, SIZE), mode="bilinear")[:, 0]
        return np.stack([gaussian_filter(one, sigma, truncate=4.0) for one in large.numpy()])

    shares = {layer: kept.at(GRIDS[layer]) for layer in patches}
    above = sum(blurred(patches[layer] * shares[layer]) for layer in patches)
    below = sum(blurred(shares[layer]) for layer in patches)
    return np.where(kept.shares.numpy() > 0, above / np.maximum(below, 1e-300), 0)


@given(seed=st.integers(0, 10**6), sigma=st.sampled_from([0.5, 1.5, 4.0]))
def test_a_pixel_is_the_mean_of_the_patches_around_it_that_count(seed: int, sigma: float) -> None:
    patches, kept = random_patches(seed), random_kept(seed)
    found = anomaly_maps(patches, SIZE, sigma, kept=kept)
    np.testing.assert_allclose(found, by_hand(patches, kept, sigma), atol=1e-5)


@given(seed=st.integers(0, 10**6), value=st.sampled_from([-1e6, 0.0, 1e6]))
def test_what_a_wholly_ignored_patch_says_changes_no_bit(seed: int, value: float) -> None:
    patches, kept = random_patches(seed), random_kept(seed)
    other = {
        layer: torch.where(kept.at(GRIDS[layer]) == 0, torch.tensor(value), values)
        for layer, values in patches.items()
    }
    for odds in (True, False):
        one = anomaly_maps(patches, SIZE, kept=kept, log_odds=odds, at=(50, 41))
        assert np.array_equal(one, anomaly_maps(other, SIZE, kept=kept, log_odds=odds, at=(50, 41)))


def test_an_image_of_which_all_counts_has_its_own_bits_beside_any_other() -> None:
    patches, kept = random_patches(3), random_kept(3)
    kept.shares[0] = 1
    alone, both = (coarse_maps(patches, SIZE, each) for each in (None, kept))
    assert np.array_equal(alone[0], both[0])
    assert not np.allclose(alone[1], both[1])
    shares = coarse_shares(kept, SIZE)
    assert top_mean(both, 0.3, shares)[0] == top_mean(alone, 0.3)[0]
    cls = np.array([0.2, 0.7])
    scores: tuple[ImageScore, ...] = ("max", "cls", "top_mean", "log_mean_exp", "mix")
    for score in scores:
        assert image_scores(both, cls, score, kept=shares)[0] == image_scores(alone, cls, score)[0]


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.02, 0.1, 0.5, 1.0]))
def test_the_highest_of_the_pixels_that_count_are_taken(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(3, 5, 7)).astype(np.float32)
    kept = (rng.random((3, 5, 7)) < 0.6).astype(np.float32)
    kept[:, 0, 0] = 1
    expected = []
    for values, counts in zip(maps, kept, strict=True):
        # Each pixel that counts 35 times, so that a 35th of it can be taken.
        repeated = np.sort(np.repeat(values[counts > 0], 35))[::-1]
        expected.append(repeated[: max(1, int(share * 35)) * int(counts.sum())].mean())
    np.testing.assert_allclose(top_mean(maps, share, kept), expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.001, 0.01, 0.1, 0.7]))
def test_to_ignore_next_to_nothing_changes_next_to_nothing(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, 20, 20))
    kept = np.ones(maps.shape, np.float32)
    kept[:, rng.integers(20), rng.integers(20)] -= np.float32(1e-7)
    np.testing.assert_allclose(top_mean(maps, share, kept), top_mean(maps, share), atol=1e-5)


def test_pixels_that_count_in_part_fill_a_share_in_part() -> None:
    maps = np.array([[[4.0, 3.0, 2.0, 1.0]]])
    kept = np.array([[[0.5, 1.0, 1.0, 0.5]]], np.float32)
    # 2 of 4 pixels are 1.5 of 3: half of the first, and the second.
    assert top_mean(maps, 0.5, kept)[0] == pytest.approx((2 + 3) / 1.5)
    np.testing.assert_allclose(top_weights(maps, 0.5, kept)[0, 0], [1 / 3, 2 / 3, 0, 0])
    # At least one of all pixels: three quarters of one, of three that count.
    assert top_mean(maps, 0.1, kept)[0] == pytest.approx((0.5 * 4 + 0.25 * 3) / 0.75)
    assert top_mean(maps, 0.1, kept * 0)[0] == 0


@given(seed=st.integers(0, 10**6))
def test_a_weighted_sum_of_pixels_is_one_of_patches(seed: int) -> None:
    patches, kept = random_patches(seed), random_kept(seed)
    maps = coarse_maps(patches, SIZE, kept).astype(np.float64)
    pixels = top_weights(maps, 0.3, coarse_shares(kept, SIZE))
    weights = patch_weights(pixels, GRIDS, SIZE, kept=kept)
    total = sum((weights[layer] * patches[layer].numpy()).sum(axis=(1, 2)) for layer in GRIDS)
    np.testing.assert_allclose(total, (pixels * maps).sum(axis=(1, 2)), atol=1e-6)


@given(seed=st.integers(0, 10**6))
def test_an_ignored_patch_is_nobodys_nearest_and_looks_for_none(seed: int) -> None:
    rows, columns = grid = (5, 4)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 20, 6))
    kept = (rng.random((2, 20)) < 0.3).astype(np.float32) * rng.choice([1, 0.1], size=(2, 20))
    found = self_distance(
        torch.from_numpy(values).float(), grid, torch.from_numpy(kept.astype(np.float32))
    )
    reach = min(REACH, max(grid) // 2 - 1)
    for image in range(2):
        for one in range(rows * columns):
            down = abs(np.arange(20) // columns - one // columns)
            right = abs(np.arange(20) % columns - one % columns)
            others = np.flatnonzero((np.maximum(down, right) > reach) & (kept[image] > 0))
            away = ((values[image, others] - values[image, one]) ** 2).sum(axis=1) / 2
            expected = away.min() if len(others) and kept[image, one] else 0
            assert found[image, one] == pytest.approx(expected, abs=1e-4)
