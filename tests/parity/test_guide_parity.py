"""Guides, maps and image scores agree with the reference's numbers."""

from __future__ import annotations

import pytest

from parity.cases import Case, assert_agrees, cases
from parity.guide_case import compare_case


@pytest.mark.parametrize("case", cases("guide"), ids=str)
def test_guides_agree_with_the_reference(case: Case) -> None:
    assert_agrees(case, compare_case(case))
