"""Codes of SAEs and of other dictionaries as entries, against the dense ones."""

from __future__ import annotations

import pytest
import torch

from spg_pipe.explain.codes import Active, decoded, dictionary_code, projection_code, sae_code
from spg_pipe.sae.model import SparseAutoencoder, sae_input, topk_code

TOKENS = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))


def dense(entries: Active, latents: int) -> torch.Tensor:
    z = torch.zeros(len(TOKENS), latents)
    z[entries.token, entries.latent] = entries.value
    return z


@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
@pytest.mark.parametrize("norm", ["none", "l2"])
def test_the_entries_are_the_code_of_the_sae(activation: str, norm: str) -> None:
    sae = SparseAutoencoder(12, 20, 3, activation=activation)
    if activation == "batch_topk":
        sae.threshold.fill_(0.5)
    entries = sae_code(sae, norm)(TOKENS)
    x = sae_input(TOKENS, norm)
    with torch.no_grad():
        expected = sae.code(x @ sae.encoder.t())
    torch.testing.assert_close(dense(entries, 20), expected)
    assert bool((entries.value > 0).all() and (entries.token.diff() >= 0).all())
    torch.testing.assert_close(decoded(entries, sae.atoms, len(x)), sae(x).x_hat)


def test_a_token_without_an_entry_is_rebuilt_as_zeros() -> None:
    code = dictionary_code(torch.eye(12)[:2], 2)
    tokens = torch.zeros(3, 12)
    tokens[1, 0] = 2
    torch.testing.assert_close(decoded(code(tokens), torch.eye(12)[:2], 3), tokens)


def test_any_unit_rows_make_a_topk_code() -> None:
    atoms = torch.nn.functional.normalize(torch.randn(20, 12), dim=1)
    entries = dictionary_code(atoms, 3)(TOKENS)
    torch.testing.assert_close(dense(entries, 20), topk_code(TOKENS @ atoms.t(), 3))


def test_projections_are_products_of_unit_tokens() -> None:
    vectors = torch.randn(4, 12)
    entries = projection_code(vectors)(3 * TOKENS)
    unit = torch.nn.functional.normalize(TOKENS, dim=1)
    torch.testing.assert_close(dense(entries, 4), unit @ vectors.t())
