"""A person's own folder of normal images → a memory bank, made on the fly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spg_pipe.bank.memory import MemoryBank
from spg_pipe.datasets import LABEL_ANOMALOUS, Manifest, build_manifest
from spg_pipe.datasets.images import read_image
from spg_pipe.detector import Detector
from spg_pipe.errors import SpgError
from spg_pipe.params import BankParams

Progress = Callable[[int, int], None]
TokensOfPixels = Callable[[list[np.ndarray]], tuple[dict[str, Tensor], dict[str, tuple[int, int]]]]
"""Images (H, W, 3) → layer → (B, 1 + N, D) float32, and layer → (h, w)."""


def normal_images(folder: Path, *, exif: bool) -> Manifest:
    """The normal images of a folder: without labels, or those in `good/` (layout `folder`).

    Parameters
    ----------
    exif : bool
        Whether EXIF orientation counts, as for the images to be judged.

    Raises
    ------
    SpgError
        If the folder is missing or holds fewer than two images, an anomalous one, several
        categories, or a file that is no image.
    """
    if not folder.is_dir():
        raise SpgError(
            f"--normals {folder} is no folder. Give a folder with a few normal images of the part "
            "that is to be inspected."
        )
    found = build_manifest("normals", "folder", folder, exif_of_own_images=exif)
    anomalous = found.table[found.table["label"] == LABEL_ANOMALOUS]
    if len(anomalous):
        raise SpgError(
            f"--normals {folder} holds {len(anomalous)} images of defects (the first: "
            f"{anomalous['path'].iloc[0]}). A bank is made of normal images alone: name the folder "
            "that has them, for instance its good/."
        )
    categories = sorted(found.table["category"].unique())
    if len(categories) > 1:
        raise SpgError(
            f"--normals {folder} holds several categories ({', '.join(categories)}). Name the "
            "folder of the one that is to be inspected."
        )
    if len(found) < 2:
        raise SpgError(
            f"--normals {folder} has {len(found)} image; a bank needs at least two, to know how "
            "far normal images lie from each other. Add some."
        )
    return found


def bank_of_images(
    detector: Detector,
    size: int,
    normals: Manifest,
    tokens_of: TokensOfPixels,
    params: BankParams,
    *,
    batch_images: int = 4,
    device: str = "cpu",
    progress: Progress | None = None,
) -> MemoryBank:
    """A bank of a manifest's images; all their tokens are held in memory.

    Parameters
    ----------
    size : int
        S: side of the maps, pixels.

    Raises
    ------
    SpgError
        If an image cannot be read, or no bank can be made of them.
    """
    parts: dict[str, list[Tensor]] = {}
    grids: dict[str, tuple[int, int]] = {}
    for start in range(0, len(normals), batch_images):
        rows = range(start, min(start + batch_images, len(normals)))
        pixels = [read_image(normals.image_path(row), exif=normals.exif) for row in rows]
        tokens, grids = tokens_of(pixels)
        for layer, values in tokens.items():
            parts.setdefault(layer, []).append(values[:, 1:].float().cpu())
        if progress:
            progress(rows.stop, len(normals))
    held = {layer: torch.cat(values) for layer, values in parts.items()}
    return MemoryBank.of(
        lambda layer, images: held[layer][torch.from_numpy(images)],
        len(normals),
        grids,
        size,
        detector.score.sigma,
        params,
        device=device,
    )
