"""Each normal image is judged by a bank that was made without it (docs/own-goods.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import bank_of_tokens

from spg_pipe.bank import memory
from spg_pipe.bank.leave_one_out import leave_one_out
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.bank.normal_patches import Grids, Tokens, TokensOf, read_normals
from spg_pipe.recipe.params import BankParams


def images(count: int) -> TokensOf:
    """Images of two layers that differ by noise, each by another amount."""
    generator = torch.Generator().manual_seed(0)
    places = {
        "1": torch.randn(17, 12, generator=generator),
        "2": torch.randn(5, 8, generator=generator),
    }
    noise = {
        layer: torch.rand(count, 1, 1, generator=generator)
        * torch.randn(count, *each.shape, generator=generator)
        for layer, each in places.items()
    }
    grids = {"1": (4, 4), "2": (2, 2)}

    def tokens_of(chosen: np.ndarray) -> tuple[Tokens, Grids]:
        some = torch.from_numpy(chosen)
        return {layer: places[layer] + noise[layer][some] for layer in grids}, grids

    return tokens_of


def without(tokens_of: TokensOf, image: int, count: int) -> tuple[TokensOf, np.ndarray]:
    others = np.delete(np.arange(count), image)
    return lambda chosen: tokens_of(others[chosen]), others


@pytest.mark.parametrize(("count", "neighbours"), [(2, 1), (3, 1), (7, 1), (7, 3), (20, 2)])
def test_it_is_a_bank_of_the_others_to_the_last_digits(count, neighbours):
    tokens_of, params = images(count), BankParams(neighbours=neighbours, top_share=0.05)
    read = read_normals(tokens_of, count)
    bank = MemoryBank.of(read, tokens_of, 32, params)
    found = leave_one_out(bank, read, tokens_of)
    assert len(found) == count
    for image, one in enumerate(found):
        rest, others = without(tokens_of, image, count)
        brute = bank_of_tokens(rest, count - 1, params)
        top = brute.distances(tokens_of(np.array([image]))[0]).top
        assert one.top == pytest.approx(float(top[0]), abs=1e-4)
        np.testing.assert_allclose(one.tops, brute.tops, atol=1e-4)
        np.testing.assert_array_equal(one.others, others[brute.apart])


def test_with_a_coreset_it_is_near_a_bank_of_the_others(monkeypatch):
    """Which holds out a quarter itself, so that another is chosen each time."""
    monkeypatch.setattr(memory, "CORESET", 120)
    count, tokens_of = 40, images(40)
    read = read_normals(tokens_of, count)
    bank = MemoryBank.of(read, tokens_of, 32, BankParams())
    found = np.array([one.top for one in leave_one_out(bank, read, tokens_of)])
    brute, in_bank = np.empty(count), bank.distances(tokens_of(np.arange(count))[0]).top
    for image in range(count):
        rest, _ = without(tokens_of, image, count)
        other = bank_of_tokens(rest, count - 1, BankParams())
        brute[image] = other.distances(tokens_of(np.array([image]))[0]).top[0]
    assert np.corrcoef(found, brute)[0, 1] > 0.85
    assert abs(np.median(found - brute)) < 0.2 * brute.std()
    assert found.mean() > in_bank.mean() + 0.1  # the coreset knows its own


def test_no_image_has_seen_itself_whatever_is_kept(monkeypatch):
    """An image that is unlike all others stays so, with a coreset too."""
    tokens_of = images(12)

    def odd(chosen: np.ndarray) -> tuple[Tokens, Grids]:
        tokens, grids = tokens_of(chosen)
        for layer in tokens:
            tokens[layer][torch.from_numpy(chosen == 5), 1:3] *= -1
        return tokens, grids

    for coreset in (10_000, 100):
        monkeypatch.setattr(memory, "CORESET", coreset)
        read = read_normals(odd, 12)
        bank = MemoryBank.of(read, odd, 32, BankParams())
        tops = [one.top for one in leave_one_out(bank, read, odd)]
        assert int(np.argmax(tops)) == 5


@pytest.mark.parametrize(("count", "neighbours"), [(1, 1), (2, 2), (3, 5)])
def test_too_few_others_give_no_scores(count, neighbours):
    tokens_of, params = images(count), BankParams(neighbours=neighbours)
    read = read_normals(tokens_of, count)
    bank = MemoryBank.of(read, tokens_of, 32, params)
    assert leave_one_out(bank, read, tokens_of) == []
