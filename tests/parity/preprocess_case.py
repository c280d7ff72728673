"""Preprocessing against the reference: from image and mask files to inputs (docs/method.md §1)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from parity.cases import Case, Comparison, compare
from spg_pipe.backbones.timm_common import preprocess_for
from spg_pipe.datasets.images import (
    Preprocess,
    preprocess,
    read_image,
    read_mask,
    resize_mask,
    soft_mask,
)

DINOV3 = "vit_large_patch16_dinov3.lvd1689m"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def compare_case(case: Case) -> list[Comparison]:
    """Write the inputs to files, then read and preprocess them as `extract` does."""
    with tempfile.TemporaryDirectory() as folder:
        got = _results(case, Path(folder))
    return [
        compare(name, value.reshape(case.array(name).shape), case.array(name), case.tol(name))
        for name, value in got.items()
    ]


def _results(case: Case, folder: Path) -> dict[str, np.ndarray]:
    got = {}
    size = int(case.scalar("size"))
    if case.has("image_rgb"):
        image = read_image(_written(case, "image_rgb", folder), exif=False)
        if case.has("dinov3_pixel_values"):
            got["dinov3_pixel_values"] = preprocess(image, preprocess_for(DINOV3, size))
        if case.has("clip_pixel_values"):
            clip_size = int(case.scalar("clip_size"))
            clip = Preprocess(clip_size, "uint8", "bicubic", CLIP_MEAN, CLIP_STD)
            got["clip_pixel_values"] = preprocess(image, clip)
    if case.has("mask_raw"):
        mask = read_mask(_written(case, "mask_raw", folder), exif=False)
        if case.has("mask_resized"):
            got["mask_resized"] = soft_mask(mask, size).astype(np.float32) / 255
        if case.has("mask_bin"):
            got["mask_bin"] = resize_mask(mask, size)
    return got


def _written(case: Case, name: str, folder: Path) -> Path:
    path = folder / f"{name}.png"
    Image.fromarray(case.array(name)).save(path)
    return path
