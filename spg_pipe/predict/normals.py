"""A person's own folder of normal images → a memory bank, made on the fly: few-shot."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from spg_pipe.bank.fusion import footing, require_fusible
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.bank.normal_patches import BATCH, Grids, Progress, Tokens
from spg_pipe.datasets.build import build_manifest
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN, Manifest
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.reading import read_image
from spg_pipe.predict.predictor import Predictor
from spg_pipe.recipe.data import Dataset
from spg_pipe.recipe.params import BankParams


@dataclass(frozen=True)
class NormalFolder:
    """Normal images as a person gives them."""

    path: Path
    params: BankParams
    alone: bool = False
    """They judge without the guides."""


def read_normals(given: NormalFolder, detector: Detector) -> Manifest:
    """The normal images of a folder: without labels, or those in `good/` (layout `folder`).

    An `SpgError` if a bank cannot be added to the detector's decision, or the folder is missing or
    holds an anomalous image, one without a label beside `good/`, several categories, or a file that
    is no image.
    """
    folder = given.path
    if not folder.is_dir():
        raise SpgError(
            f"--normals {folder} is no folder. Give a folder with a few normal images of the part "
            "that is to be inspected."
        )
    exif = detector.record.protocol.exif_of_own_images
    normals = build_manifest(
        Dataset(name="normals", layout="folder", root=folder), exif_of_own_images=exif
    )
    labels, paths = normals.table["label"], normals.table["path"]
    good = paths[labels == LABEL_NORMAL].tolist()
    defects = paths[labels == LABEL_ANOMALOUS].tolist()
    unknown = paths[labels == LABEL_UNKNOWN].tolist() if good else []
    categories = sorted(normals.table["category"].unique())
    if defects or unknown or len(categories) > 1:
        what = {"of a defect": defects, "without a label": unknown}
        holds = [
            f"{counted(len(some), 'image')} {kind} (the first: {some[0]})"
            for kind, some in what.items()
            if some
        ]
        if len(categories) > 1:
            holds.append(f"the categories {', '.join(categories)}")
        mixed = {Path(path).parent for path in (*defects, *unknown)}
        alone = [parent for path in good if (parent := Path(path).parent) not in mixed]
        advice = (
            f"name the folder that has them, for instance {folder / alone[0]}"
            if alone
            else "put them into a folder of their own and name that"
        )
        raise SpgError(
            f"--normals {folder} holds {' and '.join(holds)}. A bank is made of normal images of "
            f"one category alone: {advice}."
        )
    if not given.alone:
        require_fusible(detector)
    return normals


def with_normals(
    predictor: Predictor,
    normals: Manifest,
    given: NormalFolder,
    *,
    progress: Progress | None = None,
) -> Predictor:
    """The predictor with a bank of normal images.

    Of many images only a part of their tokens is held in memory, and up to 16 are read again, for
    the scale of the distances and for the detector.

    An `SpgError` if an image cannot be read, or no bank can be made of them.
    """
    spec = predictor.backbone.spec
    batch = max(1, BATCH // spec.inputs_per_image)

    def tokens_of(rows: np.ndarray) -> tuple[Tokens, Grids]:
        paths = [normals.image_path(row) for row in rows.tolist()]
        read = partial(read_image, exif=normals.exif, white=normals.white)
        return predictor.tokens([read(path) for path in paths])

    bank = MemoryBank.of(
        tokens_of,
        len(normals),
        spec.preprocess.size,
        given.params,
        device=predictor.device,
        batch=batch,
        progress=progress,
    )
    if given.alone:
        return replace(predictor, bank=bank)
    says = footing(predictor.detector, bank, tokens_of, spec, batch=batch)
    return replace(predictor, bank=bank, footing=says)
