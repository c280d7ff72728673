"""Preprocessing agrees with the reference's numbers."""

import numpy as np
import pytest
from PIL import Image

from parity.cases import Case, assert_agrees, cases
from parity.preprocess_case import compare_case, dinov3
from spg_pipe.datasets.images import preprocess, read_image


@pytest.mark.parametrize("case", cases("preprocess"), ids=str)
def test_preprocess_agrees_with_the_reference(case: Case):
    assert_agrees(case, compare_case(case))


@pytest.mark.parametrize("case", cases("preprocess"), ids=str)
def test_mask_agrees_exactly(case: Case):
    masks = [c for c in compare_case(case) if c.array.startswith("mask")]
    assert [c.max_error for c in masks] == pytest.approx([0.0] * len(masks), abs=1e-7)


@pytest.mark.parametrize("case", cases("preprocess"), ids=str)
def test_a_grey_file_gives_the_values_of_its_rgb_version(case: Case, tmp_path):
    if not case.has("image_gray"):
        pytest.skip(f"{case} has no image_gray")
    grey = Image.fromarray(case.array("image_gray"))
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    spec = dinov3(int(case.scalar("size")))
    values = [
        preprocess(read_image(tmp_path / f"{name}.png", exif=False), spec)
        for name in ("grey", "rgb")
    ]
    assert np.array_equal(*values)
