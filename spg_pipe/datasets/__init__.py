"""Datasets: from folders of images and masks to a Manifest, and from files to arrays.

Names are loaded when they are first used: importing this package imports neither pandas, Pillow
nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spg_pipe.datasets.build import build_manifest, list_images
    from spg_pipe.datasets.images import preprocess, read_image, read_mask, resize_mask
    from spg_pipe.datasets.layouts.catalogue import describe_layouts
    from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, Manifest, MaskState

__all__ = [
    "LABEL_ANOMALOUS",
    "Manifest",
    "MaskState",
    "build_manifest",
    "describe_layouts",
    "list_images",
    "preprocess",
    "read_image",
    "read_mask",
    "resize_mask",
]

_HOMES = {
    "build": ("build_manifest", "list_images"),
    "images": ("preprocess", "read_image", "read_mask", "resize_mask"),
    "layouts.catalogue": ("describe_layouts",),
    "manifest": ("LABEL_ANOMALOUS", "Manifest", "MaskState"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
