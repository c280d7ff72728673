"""A person's own folder of normal images → a memory bank, made on the fly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from spg_pipe.backbones.spec import BackboneSpec
from spg_pipe.bank.images import BATCH, Grids, Tokens
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.datasets import LABEL_ANOMALOUS, Manifest, build_manifest
from spg_pipe.datasets.images import read_image
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import BankParams

Progress = Callable[[int, int], None]
TokensOfPixels = Callable[[list[np.ndarray]], tuple[Tokens, Grids]]
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
    spec: BackboneSpec,
    normals: Manifest,
    tokens_of: TokensOfPixels,
    params: BankParams,
    *,
    batch_images: int = BATCH,
    device: str = "cpu",
    progress: Progress | None = None,
) -> MemoryBank:
    """A bank of a manifest's images. Of many only a part of their tokens is held in memory, and
    up to 16 of the images are read a second time.

    Parameters
    ----------
    spec : BackboneSpec
        Of what makes the tokens: the size of the maps, and how many tiles an image has.
    batch_images : int
        Images at once; tiled images come one by one.

    Raises
    ------
    SpgError
        If an image cannot be read, or no bank can be made of them.
    """

    def tokens_of_rows(rows: np.ndarray) -> tuple[Tokens, Grids]:
        paths = [normals.image_path(row) for row in rows.tolist()]
        return tokens_of([read_image(path, exif=normals.exif) for path in paths])

    return MemoryBank.of(
        tokens_of_rows,
        len(normals),
        spec.preprocess.size,
        params,
        device=device,
        batch=max(1, batch_images // spec.views),
        progress=progress,
    )
