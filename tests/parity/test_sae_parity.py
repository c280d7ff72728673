"""The sparse autoencoder agrees with the reference's numbers."""

from __future__ import annotations

import pytest

from parity.cases import Case, assert_agrees, cases
from parity.sae_case import compare_case


@pytest.mark.parametrize("case", cases("sae"), ids=str)
def test_sae_agrees_with_the_reference(case: Case) -> None:
    assert_agrees(case, compare_case(case))
