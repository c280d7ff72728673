"""Which images of a category the page shows, and where the atoms behind their scores count.

Anomalous images with a mask are ranked by `qualities`; the others by their score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import average_precision_score

from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN, MaskState
from spg_pipe.decision import heat_maps
from spg_pipe.decision.maps import raw_maps
from spg_pipe.detector.scores import Scores
from spg_pipe.explain.picture import atom_overlay
from spg_pipe.images.preprocess import resize_mask
from spg_pipe.images.reading import read_image
from spg_pipe.report.atoms import Reasons
from spg_pipe.report.inputs import DirectionRuns
from spg_pipe.report.pictures import ImageFiles, fitting
from spg_pipe.store.reader import FeatureStore

SHOWN = 3
"""Images of a kind and category."""
ATOM_LONGEST = 120
"""Longest side of an atom's picture, pixels."""
_CHUNK = 256
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Example:
    """One image of the page."""

    image: int
    """Row of the scores' table."""
    kind: str
    """"best", "worst", "highest", "lowest", "false-alarm" or "unlabelled"."""
    path: str
    score: float
    quality: float
    """NaN where there is no mask."""


@dataclass(frozen=True)
class ExampleWithReasons:
    """An example with its files."""

    example: Example
    files: ImageFiles
    """Those of the gallery."""
    reasons: Reasons | None
    """None where the detector or the tokens are gone."""
    atoms: str
    """How the names of its atoms' pictures begin, relative to the report's folder."""


def qualities(scores: Scores, store: "FeatureStore | None") -> np.ndarray:
    """Average precision of each image's own map on the patch grid: (n,) float64 in [0, 1].

    NaN for all but anomalous images with a mask, and where it has no pixel at S×S. Every patch has
    its value (mean over layers, before upsampling and blur) and the share of its pixels that are
    defect: the average precision of the patch map painted in full size without interpolation. It
    costs a sort of some hundred values instead of S² of them, and no defect is too small to count.
    """
    table = scores.table
    out = np.full(len(table), np.nan)
    if store is None:
        return out
    given = (table["mask_state"] == MaskState.GIVEN) & (table["label"] == LABEL_ANOMALOUS)
    images = np.flatnonzero(given)
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        patches = scores.patches(part)
        finest = max(patches.values(), key=lambda values: values[0].numel())
        grid = (finest.shape[1], finest.shape[2])
        for image, patch_map in zip(part, raw_maps(patches, grid).numpy(), strict=True):
            share = _shares(store.masks(np.array([image]))[0], grid)
            out[image] = weighted_precision(patch_map.ravel(), share.ravel())
    return out


def weighted_precision(scores: np.ndarray, share: np.ndarray) -> float:
    """Step-wise average precision of cells (n,) of which a share (n,) in [0, 1] is positive."""
    if share.sum() == 0:
        return float("nan")
    share = share.astype(np.float64).clip(0, 1)  # float32 sums of pixels may exceed 1
    positive, weight = np.repeat([1, 0], len(share)), np.concatenate([share, 1 - share])
    return float(average_precision_score(positive, np.tile(scores, 2), sample_weight=weight))


def _shares(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Share of defect pixels in every cell of a grid (h, w): float32 from (S, S)."""
    whole = Image.fromarray(mask.astype(np.float32))
    return np.asarray(whole.resize((grid[1], grid[0]), Image.Resampling.BOX))


def choose(table: "pd.DataFrame", category: str, quality: np.ndarray) -> list[Example]:
    """The images of a category to show.

    Parameters
    ----------
    table : DataFrame
        `Scores.table`.
    quality : (n,) float
        Of every row of the table, NaN where there is none.

    Returns
    -------
    list of Example
        Up to 3 best and 3 worst anomalous images, never one as both; by their scores where none
        has a mask. The normal image with the highest score. Up to 3 unlabelled images with the
        highest scores.
    """
    rows = table.assign(quality=quality)[table["category"] == category]
    by_score = rows.sort_values("score", ascending=False, kind="stable")
    order, names = by_score[by_score["label"] == LABEL_ANOMALOUS], ("highest", "lowest")
    if order["quality"].notna().any():
        ranked = rows[(rows["label"] == LABEL_ANOMALOUS) & rows["quality"].notna()]
        order = ranked.sort_values("quality", ascending=False, kind="stable")
        names = ("best", "worst")
    best = order[: min(SHOWN, -(-len(order) // 2))]
    chosen = {
        names[0]: best,
        names[1]: order[len(best) :][::-1][:SHOWN],
        "false-alarm": by_score[by_score["label"] == LABEL_NORMAL][:1],
        "unlabelled": by_score[by_score["label"] == LABEL_UNKNOWN][:SHOWN],
    }
    return [
        Example(image, kind, row["path"], row["score"], row["quality"])
        for kind, images in chosen.items()
        for image, row in zip(images.index.tolist(), images.to_dict("records"), strict=True)
    ]


def draw_atoms(
    way: DirectionRuns, shown: Sequence[ExampleWithReasons], images: Path, folder: Path
) -> None:
    """Write where the atoms of some examples count, over the photographs in `images`.

    The pictures go below `folder`, the report's, under their names.
    """
    store, log_odds = way.store, way.runs[0].scores.record.log_odds
    for each in shown:
        under = small_photograph(images, each.files)
        mask = store.masks(np.array([each.example.image]))[0] if store else None
        outlined = mask is not None and each.files.mask
        for number, atom in enumerate(each.reasons.atoms if each.reasons else ()):
            if atom.map is None:
                continue
            drawn = atom_overlay(under, atom.map, log_odds=log_odds)
            if mask is not None and outlined:
                small = resize_mask(mask, (under.shape[0], under.shape[1]))
                drawn = heat_maps.outline(drawn, small)
            path = folder / f"{each.atoms}-{number}.jpg"
            Image.fromarray(drawn).save(path, quality=_JPEG_QUALITY, subsampling=0)


def small_photograph(images: Path, files: ImageFiles) -> np.ndarray:
    """A photograph of a gallery for an atom's picture, (H, W, 3) uint8; grey if there is none."""
    height, width = fitting(files.size, ATOM_LONGEST)
    if not files.photograph:
        return np.full((height, width, 3), 128, np.uint8)
    photograph = Image.fromarray(read_image(images / f"{files.stem}.jpg", exif=False))
    return np.asarray(photograph.resize((width, height), Image.Resampling.LANCZOS))
