"""Preprocessing against the reference: from image and mask files to inputs (docs/method.md §1)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from parity.cases import Case, Comparison, compare
from spg_pipe.backbones import openclip, timm_models
from spg_pipe.backbones.names import find_alias
from spg_pipe.images.preprocess import Preprocess, preprocess, resize_mask, soft_mask
from spg_pipe.images.reading import read_image, read_mask


def wanted(alias: Literal["dinov3", "openclip"], size: int) -> Preprocess:
    """What the backbone asks for at `size` pixels."""
    info = find_alias(alias)
    assert info is not None
    family = {"dinov3": timm_models, "openclip": openclip}[alias]
    return family.preprocess_for(info.model, size)


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
            got["dinov3_pixel_values"] = preprocess(image, wanted("dinov3", size))
        if case.has("clip_pixel_values"):
            clip_size = int(case.scalar("clip_size"))
            got["clip_pixel_values"] = preprocess(image, wanted("openclip", clip_size))
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
