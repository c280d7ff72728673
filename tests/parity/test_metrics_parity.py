"""The reference's metrics, on every case of the folder."""

from __future__ import annotations

import pytest

from parity.cases import Case, assert_agrees, cases
from parity.metrics_case import compare_case


@pytest.mark.parametrize("case", cases("metrics"), ids=str)
def test_metrics_agree_with_the_reference(case: Case) -> None:
    assert_agrees(case, compare_case(case))
