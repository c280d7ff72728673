"""Which images of a category the page shows, and their pictures.

Anomalous images with a mask are ranked by `qualities`; the others by their score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from spg_pipe.datasets.manifest import LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_UNKNOWN, MaskState
from spg_pipe.decision import heat_maps
from spg_pipe.decision.maps import raw_maps, resize_maps, shown_range
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.explain.picture import atom_overlay
from spg_pipe.images.preprocess import resize_mask
from spg_pipe.images.reading import read_image
from spg_pipe.report.atoms import Reasons
from spg_pipe.report.inputs import DirectionRuns
from spg_pipe.store.reader import FeatureStore

SHOWN = 3
"""Images of a kind and category."""
LONGEST = 320
"""Longest side of a picture in the page's folder, pixels."""
ATOM_LONGEST = 120
"""Of an atom's picture."""
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
class Picture:
    """An example's files."""

    example: Example
    files: str
    """How their names begin, relative to the page."""
    photograph: bool
    """It is there and could be decoded; else the map lies over plain grey."""
    size: tuple[int, int]
    """(height, width)"""
    outlined: bool
    """The mask's outline is drawn in the heat map."""
    reasons: Reasons | None
    """None where the detector or the tokens are gone."""


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
    from PIL import Image

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


def draw(
    direction: DirectionRuns,
    examples: Sequence[Example],
    reasons: Sequence[Reasons | None],
    folder: Path,
    name: str,
) -> list[Picture]:
    """Write the pictures of some examples into `folder`/`name`-….jpg."""
    scores, store = direction.runs[0].scores, direction.store
    low, high = shown_range(log_odds=scores.record.log_odds)
    rows = np.array([example.image for example in examples], dtype=int)
    # All at once, because a chunk of the scores holds many images.
    maps = scores.maps(rows) if examples else np.empty((0, 1, 1), np.float32)
    pictures = []
    each = zip(examples, maps, reasons, strict=True)
    for number, (example, small, why) in enumerate(each):
        row, stem = scores.table.iloc[example.image], f"{name}-{number}"
        path, white = direction.dataset.root / example.path, store.spec.white if store else None
        photograph = _photograph(path, direction.exif, white)
        if photograph is not None:
            _save(photograph, folder / f"{stem}-image.jpg")
            under = photograph
        else:
            under = fit(np.full((row["height"], row["width"], 3), 128, np.uint8), LONGEST)
        size = (under.shape[0], under.shape[1])
        heat_map = heat_maps.overlay(under, resize_maps(small[None], size)[0], low=low, high=high)
        outlined = store is not None and row["mask_state"] == MaskState.GIVEN
        known = store if outlined else None
        mask = None if known is None else known.masks(np.array([example.image]))[0]
        if mask is not None:
            heat_map = heat_maps.outline(heat_map, resize_mask(mask, size))
        _save(heat_map, folder / f"{stem}-map.jpg")
        if why is not None:
            atom_maps = _atom_maps(fit(under, ATOM_LONGEST), mask, why, scores.record.log_odds)
            for of, drawn in atom_maps.items():
                _save(drawn, folder / f"{stem}-atom-{of}.jpg")
        files = f"{folder.name}/{stem}"
        pictures.append(Picture(example, files, photograph is not None, size, outlined, why))
    return pictures


def _atom_maps(
    photograph: np.ndarray, mask: np.ndarray | None, why: Reasons, log_odds: bool
) -> dict[int, np.ndarray]:
    """Number of an atom that has a map → its picture, with the mask's outline."""
    drawn = {}
    for number, atom in enumerate(why.atoms):
        if atom.map is not None:
            drawn[number] = atom_overlay(photograph, atom.map, log_odds=log_odds)
            if mask is not None:
                small = resize_mask(mask, (photograph.shape[0], photograph.shape[1]))
                drawn[number] = heat_maps.outline(drawn[number], small)
    return drawn


def _photograph(path: Path, exif: bool, white: int | None) -> np.ndarray | None:
    """A photograph at the page's size, (H, W, 3) uint8; None if it cannot be read."""
    try:
        return fit(heat_maps.eight_bit(read_image(path, exif=exif, white=white)), LONGEST)
    except SpgError:
        return None


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, quality=_JPEG_QUALITY, subsampling=0)


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrink an image (H, W, 3) uint8 to at most `longest` pixels a side, aspect ratio kept."""
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(small)
