"""Neighbours, matches across seeds and the map of a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.explain.dictionary import MATCHED, layout_2d, matches, nearest_atoms


def dictionary(atoms: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(atoms, dim, generator=generator), dim=1)


def alive(atoms: int) -> Tensor:
    """No atom is dead."""
    return torch.zeros(atoms, dtype=torch.bool)


def test_neighbours_are_the_atoms_with_the_largest_cosines() -> None:
    atoms = dictionary(40, 6)
    found = nearest_atoms(atoms, 5, alive(40))
    products = (atoms @ atoms.t()).fill_diagonal_(-2)
    expected = products.topk(5, dim=1)
    np.testing.assert_array_equal(found.ids, expected.indices.numpy())
    np.testing.assert_allclose(found.cosines, expected.values.numpy(), atol=1e-6)


def test_an_atom_that_is_there_twice_is_not_its_own_neighbour() -> None:
    atoms = dictionary(4, 6).repeat(5, 1)
    found = nearest_atoms(atoms, 3, alive(20))
    assert not (found.ids == np.arange(20)[:, None]).any()
    np.testing.assert_allclose(found.cosines, 1, atol=1e-6)


def test_dead_atoms_neither_have_neighbours_nor_are_any() -> None:
    atoms, dead = dictionary(10, 6), alive(10)
    dead[[2, 7]] = True
    found = nearest_atoms(atoms, 9, dead)
    assert not np.isin(found.ids, [2, 7]).any()
    assert (found.ids[[2, 7]] == -1).all()
    assert np.isnan(found.cosines[dead.numpy()]).all()
    kept = found.ids[~dead.numpy()]
    assert (kept[:, :7] >= 0).all()
    assert (kept[:, 7:] == -1).all()


@pytest.mark.parametrize("left", [0, 1])
def test_without_another_atom_there_are_no_neighbours(left: int) -> None:
    dead = torch.tensor([left == 0, True, True])
    assert (nearest_atoms(dictionary(3, 4), 2, dead).ids == -1).all()


def test_matches_find_the_same_atoms_in_any_order() -> None:
    atoms = dictionary(30, 8)
    shuffled = atoms[torch.randperm(30, generator=torch.Generator().manual_seed(1))]
    half = torch.cat([atoms[:15], -atoms[15:]])
    found = matches(atoms, [shuffled, half], alive(30), [alive(30)] * 2)
    np.testing.assert_allclose(found.cosines[:, 0], 1, atol=1e-6)
    expected = (atoms @ half.t()).amax(dim=1)
    np.testing.assert_allclose(found.cosines[:, 1], expected, atol=1e-6)
    assert (found.reproduced == 1 + (expected.numpy() >= MATCHED)).all()
    assert set(found.reproduced[:15]) == {2}
    np.testing.assert_allclose(found.mean, found.cosines.mean(axis=1))


def test_dead_atoms_match_nothing() -> None:
    atoms, dead = dictionary(10, 8), torch.arange(10) == 3
    found = matches(atoms, [atoms, atoms], dead, [dead, torch.arange(10) == 4])
    assert np.isnan(found.cosines[3]).all()
    assert found.reproduced[3] == 0
    assert found.reproduced[4] == 1
    assert (np.delete(found.reproduced, [3, 4]) == 2).all()


def test_a_single_seed_has_nothing_to_be_compared_with() -> None:
    found = matches(dictionary(5, 4), [], alive(5), [])
    assert found.cosines.shape == (5, 0)
    assert found.reproduced.tolist() == [0] * 5
    assert np.isnan(found.mean).all()


def test_the_bound_is_far_above_what_unrelated_atoms_reach() -> None:
    others = dictionary(2048, 384, 2)
    found = matches(dictionary(500, 384, 1), [others], alive(500), [alive(2048)])
    assert float(found.cosines.max()) < 0.35
    assert found.reproduced.sum() == 0


def test_like_atoms_lie_together_on_the_map_and_it_is_always_the_same() -> None:
    centres = dictionary(4, 16)
    atoms = F.normalize(centres.repeat(25, 1) + 0.1 * dictionary(100, 16, 5), dim=1)
    dead = torch.arange(100) == 99
    found = layout_2d(atoms, dead)
    np.testing.assert_array_equal(found, layout_2d(atoms, dead))
    assert np.isnan(found[99]).all()
    places = found[:99]
    assert places.min() == 0
    assert places.max() == 1
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (apart.argmin(axis=1) % 4 == np.arange(99) % 4).mean() > 0.95


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_map_of_few_atoms_has_a_place_for_each(count: int) -> None:
    found = layout_2d(dictionary(count, 4), alive(count))
    assert found.shape == (count, 2)
    assert np.isfinite(found).all()
