"""Components are the formulas of docs/method.md §8, token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spg_pipe.decision import components as module
from spg_pipe.decision.components import REACH, Components, Sides, components, self_distance

GRIDS = [(1, 1), (1, 2), (2, 2), (3, 3), (1, 7), (5, 4), (6, 6), (7, 5)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def by_hand(coordinates: np.ndarray, grid: tuple[int, int]) -> list[float]:
    """Of (N, m): every patch with every other that is far enough away."""
    places = list(np.ndindex(grid))
    reach = min(REACH, max(grid) // 2 - 1)
    distances = []
    for x, (row, column) in zip(coordinates, places, strict=True):
        others = [
            ((x - y) ** 2).sum() / 2
            for y, (down, right) in zip(coordinates, places, strict=True)
            if max(abs(down - row), abs(right - column)) > reach
        ]
        distances.append(0.0 if len(places) == 1 else min(others))
    return distances


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("cells", [1, 30, 200, 2**22])
def test_self_distance_is_the_distance_to_the_nearest_patch_that_is_no_neighbour(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int], cells: int
) -> None:
    """However many images or rows are compared at once."""
    coordinates = unit(random(5, grid[0] * grid[1], 6)) * 0.9
    whole = self_distance(coordinates, grid)
    monkeypatch.setattr(module, "_CELLS", cells)
    distances = self_distance(coordinates, grid)
    expected = [by_hand(image.double().numpy(), grid) for image in coordinates]
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    assert (distances >= 0).all()
    torch.testing.assert_close(distances, whole, atol=1e-6, rtol=0)
    for image in range(5):
        assert self_distance(coordinates[image : image + 1], grid)[0].equal(distances[image])


def test_a_row_of_patches_is_compared_at_a_time_where_the_grid_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory grows with the row of a grid, not with its square."""
    sizes = []
    true = torch.baddbmm

    def baddbmm(*arguments: torch.Tensor) -> torch.Tensor:
        sizes.append(true(*arguments).numel())
        return true(*arguments)

    monkeypatch.setattr(module, "_CELLS", 1000)
    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    self_distance(random(2, 400, 3), (20, 20))
    assert sizes == [20 * 400] * 2 * 20


def test_a_copy_far_away_makes_a_patch_normal_and_one_nearby_does_not() -> None:
    coordinates = unit(random(1, 64, 6, seed=1))
    coordinates[:, 63] = coordinates[:, 0]
    coordinates[:, 18] = coordinates[:, 9]  # the row and the column after
    distances = self_distance(coordinates, (8, 8))[0]
    assert distances[[0, 63]].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert distances[[9, 18]].min() > 0.01


def test_an_image_of_one_colour_has_no_self_distance() -> None:
    coordinates = unit(random(1, 1, 6)).expand(2, 36, 6)
    np.testing.assert_allclose(self_distance(coordinates, (6, 6)), 0, atol=1e-6)


@pytest.mark.parametrize("detection", ["cls", "mean_tokens"])
def test_components_are_their_formulas(detection: str) -> None:
    tokens, directions = random(3, 21, 7), random(2, 2, 7, seed=1)
    basis = torch.linalg.qr(random(7, 3, seed=2))[0]
    sides = Sides({"patches": directions[0], detection: directions[1]}, basis)  # type: ignore[dict-item]
    raw = components(tokens, sides, (5, 4))
    for image in range(3):
        x = tokens[image].double()
        feature = x[0] if detection == "cls" else x[1:].mean(dim=0)
        expected = Components(
            directions[0].double() @ unit(x[1:]).t(),
            self_distance((unit(x[1:]) @ basis.double())[None], (5, 4))[0],
            directions[1].double() @ unit(feature),
        )
        np.testing.assert_allclose(raw.guides[image], expected.guides, atol=1e-5)
        np.testing.assert_allclose(raw.self_distance[image], expected.self_distance, atol=1e-5)
        assert raw.detection is not None
        np.testing.assert_allclose(raw.detection[image], expected.detection, atol=1e-5)


def test_each_image_is_judged_on_its_own_and_some_can_be_picked() -> None:
    tokens = random(3, 21, 7)
    sides = Sides({"patches": random(2, 7, seed=1)}, torch.eye(7))
    together, alone = (components(each, sides, (4, 5)) for each in (tokens, tokens[1:2]))
    assert together.detection is None
    picked = together.of(torch.tensor([1]), 1)
    torch.testing.assert_close(picked.guides, alone.guides[:, 1:])
    torch.testing.assert_close(picked.self_distance, alone.self_distance)


def test_with_a_whole_basis_self_distance_is_one_minus_the_cosine() -> None:
    tokens = random(1, 1 + 4, 7)
    raw = components(tokens, Sides({"patches": random(1, 7)}, torch.eye(7)), (2, 2))
    cosines = unit(tokens[0, 1:]) @ unit(tokens[0, 1:]).t() - 2 * torch.eye(4)
    torch.testing.assert_close(raw.self_distance[0], 1 - cosines.amax(dim=1), atol=1e-6, rtol=0)
