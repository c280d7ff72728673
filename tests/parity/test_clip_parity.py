"""CLIP tokens agree with the reference's, through the project's open_clip path."""

import pytest
import torch

from parity.cases import Case, assert_agrees, cases
from parity.clip_case import build_case, compare_case


@pytest.mark.parametrize("case", cases("clip"), ids=str)
def test_clip_tokens_agree_with_the_reference(case: Case):
    assert_agrees(case, compare_case(case))


@pytest.mark.parametrize("case", cases("clip"), ids=str)
def test_the_native_position_embedding_gives_other_tokens(case: Case):
    if case.array("image").shape[-1] == case.scalar("input_resolution"):
        pytest.skip(f"{case} does not resize its position embedding")
    layer = str(case.scalar("layers"))
    native = build_case(case, "native")[0](torch.from_numpy(case.array("image")))[layer]
    expected = torch.from_numpy(case.array(f"tokens_layer{layer}"))[:, 1:]
    assert (native.patches - expected).abs().max() > 1e-3
