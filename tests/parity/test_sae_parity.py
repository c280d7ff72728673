"""The sparse autoencoder agrees with the reference's numbers."""

from __future__ import annotations

import pytest

from parity.cases import OWN_CASES, Case, assert_agrees, cases
from parity.sae_case import compare_case
from spg_pipe.sae import sparse


@pytest.mark.parametrize("case", cases("sae"), ids=str)
def test_sae_agrees_with_the_reference(case: Case) -> None:
    assert_agrees(case, compare_case(case))


def test_the_sparse_sums_of_large_batches_agree_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", 0)
    case = cases("sae", OWN_CASES)[0]
    assert_agrees(case, compare_case(case))
