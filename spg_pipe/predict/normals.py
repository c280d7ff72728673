"""A person's own folder of normal images → a memory bank, made on the fly: few-shot."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from spg_pipe.bank.fitted import MAKE, FittedBank, GoodImages, fit_bank, is_bank
from spg_pipe.bank.fusion import require_fusible
from spg_pipe.bank.memory import APART
from spg_pipe.bank.normal_patches import Progress
from spg_pipe.datasets.build import build_manifest
from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN, Manifest
from spg_pipe.decision.kept import Kept
from spg_pipe.detector.model import Detector
from spg_pipe.errors import SpgError, counted
from spg_pipe.images.reading import read_image
from spg_pipe.images.samples import white_of
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.view import View, Viewing
from spg_pipe.recipe.data import Dataset
from spg_pipe.recipe.params import BankParams

_MATTER = (
    "left out",
    ", ignored",
    "taken for images",
    "mask by the",
    "masks by the",
    "there are:",
)
"""In those notes on normal images that matter for a bank."""


@dataclass(frozen=True)
class NormalFolder:
    """Normal images as a person gives them: their folder, or that of a bank fitted to them."""

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
            "that is to be inspected, or one that `spg-pipe fit --normals` wrote."
        )
    exif = detector.record.protocol.exif_of_own_images
    normals = build_manifest(
        Dataset(name="normals", layout="folder", root=folder),
        exif_of_own_images=exif,
        skip_bad=True,
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


def notes_of(normals: Manifest) -> list[str]:
    """What a person should know of the normal images' folder."""
    matter = [note for note in normals.notes if any(words in note for words in _MATTER)]
    bad = [f"left out, unusable: {each.path} ({each.reason})" for each in normals.skipped]
    return [f"--normals: {note}" for note in (*matter, *bad)]


def fit_normals(
    predictor: Predictor,
    normals: Manifest,
    params: BankParams,
    viewing: Viewing,
    *,
    progress: Progress | None = None,
) -> FittedBank:
    """A bank of normal images, as the predictor sees them, and shown as those to be judged.

    Of many images only a part of their tokens is held in memory, and they are read again, for the
    scale of the distances and for their own scores.

    An `SpgError` if an image cannot be read, has no mask, or no bank can be made of them.
    """
    size, rows = predictor.backbone.spec.preprocess.size, normals.table

    def view_of(row: int) -> View:
        shape = (int(rows["height"].iloc[row]), int(rows["width"].iloc[row]))
        return viewing.of(rows["path"].iloc[row], normals.root.name, shape, exif=normals.exif)

    @lru_cache(maxsize=APART)
    def kept(row: int) -> np.ndarray | None:
        return view_of(row).kept(size)

    def framed(row: int) -> np.ndarray:
        path = normals.image_path(row)
        return view_of(row).framed(read_image(path, exif=normals.exif, white=normals.white))

    goods = GoodImages(
        lambda images: predictor.tokens([framed(row) for row in images.tolist()]),
        files=list(zip(rows["path"], rows["sha256"], strict=True)),
        white=normals.white,
        kept_of=lambda images: Kept.of([kept(row) for row in images.tolist()]),
        fit=viewing.fit,
        ignored=viewing.digest,
    )
    return fit_bank(
        goods,
        predictor.detector,
        predictor.backbone.spec,
        params,
        device=predictor.device,
        progress=progress,
    )


def load_bank(
    given: NormalFolder, detector: Detector, viewing: Viewing, *, device: str
) -> FittedBank | None:
    """The saved bank of a folder; None if it holds no such, but perhaps images.

    An `SpgError` if it is damaged, lacks what the guides need, or its images were shown otherwise.
    """
    if not is_bank(given.path):
        return None
    bank = FittedBank.load(given.path, device=device)
    if given.params not in (BankParams(), bank.record.params):
        raise SpgError(
            f"The bank {given.path} was fitted with settings of its own: leave out --set, or fit "
            f"it again with them (`{MAKE}`)."
        )
    if (bank.record.fit, bank.record.ignored) != (viewing.fit, viewing.digest):
        raise SpgError(
            f"The images of the bank {given.path} were shown otherwise ({bank.record.fit}, "
            f"{'with' if bank.record.ignored else 'without'} masks of what is ignored). Give the "
            f"same --letterbox, --crop, --ignore and --blank, or fit it again (`{MAKE}`)."
        )
    if not given.alone and bank.record.footing is None:
        require_fusible(detector)
    return bank


def white_with(known: int | None, peak: int | None) -> int | None:
    """What 16-bit images are read with that do not say their white and go up to `peak`.

    `known` is white of a bank or a calibration, which these images are to be compared with; None:
    they tell it themselves. An `SpgError` if they are brighter.
    """
    if known is None:
        return white_of(peak)
    if peak is not None and peak > known:
        raise SpgError(
            f"White is {known} in the normal images of the bank or the calibration, and these "
            f"16-bit images have values up to {peak}: the same part would have other grey levels. "
            "Save all of them with white at 65535, or fit the bank and calibrate again with "
            "brighter images."
        )
    return known
