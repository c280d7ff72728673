"""Datasets: from folders of images and masks to a Manifest, and from files to arrays.

Names are loaded when they are first used: importing this package imports neither pandas, Pillow
nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spg_pipe.datasets.build import build_manifest, list_images
    from spg_pipe.datasets.images import Preprocess, preprocess, read_image, read_mask, resize_mask
    from spg_pipe.datasets.layouts.catalogue import describe_layouts
    from spg_pipe.datasets.manifest import (
        LABEL_ANOMALOUS,
        LABEL_NORMAL,
        LABEL_UNKNOWN,
        Manifest,
        MaskState,
    )
    from spg_pipe.datasets.skipped import Skipped

__all__ = [
    "LABEL_ANOMALOUS",
    "LABEL_NORMAL",
    "LABEL_UNKNOWN",
    "Manifest",
    "MaskState",
    "Preprocess",
    "Skipped",
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
    "images": ("Preprocess", "preprocess", "read_image", "read_mask", "resize_mask"),
    "layouts.catalogue": ("describe_layouts",),
    "manifest": ("LABEL_ANOMALOUS", "LABEL_NORMAL", "LABEL_UNKNOWN", "Manifest", "MaskState"),
    "skipped": ("Skipped",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
