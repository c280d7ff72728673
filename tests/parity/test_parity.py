"""Our numbers agree with the reference's, kind by kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_table import compare_kind
from PIL import Image

from parity import clip_case, preprocess_case, sae_case
from parity.cases import OWN_CASES, Case, assert_agrees, cases
from spg_pipe.images.preprocess import preprocess
from spg_pipe.images.reading import read_image
from spg_pipe.sae import sparse


@pytest.mark.parametrize("case", cases(), ids=str)
def test_our_numbers_agree_with_the_reference(case: Case) -> None:
    assert_agrees(case, compare_kind(case))


def test_the_sparse_sums_of_large_batches_agree_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ENTRIES", 0)
    case = cases("sae", OWN_CASES)[0]
    assert_agrees(case, sae_case.compare_case(case))


@pytest.mark.parametrize("case", cases("clip"), ids=str)
def test_the_native_position_embedding_gives_other_tokens(case: Case) -> None:
    if case.array("image").shape[-1] == case.scalar("input_resolution"):
        pytest.skip(f"{case} does not resize its position embedding")
    layer = str(case.scalar("layers"))
    backbone, *_ = clip_case.build_case(case, "native")
    native = backbone(torch.from_numpy(case.array("image")))[layer]
    expected = torch.from_numpy(case.array(f"tokens_layer{layer}"))[:, 1:]
    assert (native.patches - expected).abs().max() > 1e-3


@pytest.mark.parametrize("case", cases("preprocess"), ids=str)
def test_masks_agree_exactly_and_a_grey_file_is_its_rgb_version(case: Case, tmp_path: Path) -> None:
    masks = [c for c in compare_kind(case) if c.array.startswith("mask")]
    assert [c.max_error for c in masks] == pytest.approx([0.0] * len(masks), abs=1e-7)
    if not case.has("image_gray"):
        pytest.skip(f"{case} has no image_gray")
    grey = Image.fromarray(case.array("image_gray"))
    spec = preprocess_case.wanted("dinov3", int(case.scalar("size")))
    values = []
    for name, image in (("grey", grey), ("rgb", grey.convert("RGB"))):
        image.save(tmp_path / f"{name}.png")
        values.append(preprocess(read_image(tmp_path / f"{name}.png", exif=False), spec))
    assert np.array_equal(*values)
