"""Maps and scores of labelled images, judged while a detector is made: at a quarter of the size.

That is enough to rank settings and to find odd images, and sixteen times less to do.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.fit import Measured
from spg_pipe.decision.maps import anomaly_maps
from spg_pipe.decision.model import COARSE, Decision
from spg_pipe.metrics import Regions, accumulate, image_metrics
from spg_pipe.store.reader import FeatureStore

FIGURES = ("image_auroc", "pixel_auroc", "pixel_ap")


def known_mean(values: object, axis: int = 0) -> np.ndarray:
    """Means along an axis over the values that are not NaN; NaN where there is none."""
    array = np.asarray(values, dtype=float)
    count = (~np.isnan(array)).sum(axis=axis)
    total = np.nansum(array, axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def judge_rows(
    measured: Measured,
    regions: Mapping[int, Regions],
    decision: Decision,
    which: int,
    chosen: np.ndarray,
) -> np.ndarray:
    """(3,) `FIGURES` of the chosen images (n,) bool, means over categories."""
    rows = np.flatnonzero(chosen)
    values = decision.shares(measured.image_values(decision, which, rows))
    scores = np.sum(list(values.values()), axis=0)
    map_of = partial(finished_map, measured, regions, decision, which)
    categories = measured.categories[rows]
    auroc = image_auroc(measured.labels[rows], categories, scores)
    pixel = pixel_figures(map_of, rows, categories, regions)
    return np.array([auroc, *pixel[: len(FIGURES) - 1]])


def finished_map(
    measured: Measured, regions: Mapping[int, Regions], decision: Decision, which: int, image: int
) -> np.ndarray:
    """An image's map in [0, 1], of the shape of its mask's regions."""
    patches = measured.log_odds(decision, which, np.array([image]))
    return anomaly_maps(patches, measured.size, at=regions[image].shape, log_odds=True)[0]


def image_auroc(labels: np.ndarray, categories: np.ndarray, scores: np.ndarray) -> float:
    """Of images (n,), the mean over categories; NaN if none has both classes."""
    parts = (categories == category for category in np.unique(categories))
    return float(known_mean([image_metrics(labels[rows], scores[rows]).auroc for rows in parts]))


def pixel_figures(
    map_of: Callable[[int], np.ndarray],
    images: np.ndarray,
    categories: np.ndarray,
    regions: Mapping[int, Regions],
) -> np.ndarray:
    """(3,) pixel AUROC, AP and AUPRO@0.3 of those images (n,) whose mask's regions are known.

    `map_of` gives an image's map in [0, 1], of the shape of its regions; figures are means over
    `categories` (n,).
    """
    figures = [[math.nan] * 3]
    for category in np.unique(categories):
        known = [image for image in images[categories == category].tolist() if image in regions]

        def pairs(known: list[int] = known) -> Iterator[tuple[np.ndarray, Regions]]:
            for image in known:
                yield map_of(image), regions[image]

        if known:
            pixel = accumulate(pairs, "histogram")
            figures.append([pixel.auroc, pixel.ap, pixel.aupro[0.3]])
    return known_mean(figures)


def coarse_masks(store: FeatureStore) -> dict[int, Regions]:
    """Image → regions of its mask at S/4, where it is known."""
    return {row: Regions.of(mask) for row, mask in coarse_pixels(store)}


def coarse_pixels(store: FeatureStore) -> Iterator[tuple[int, np.ndarray]]:
    """Each image with a known mask, and (S/4, S/4) bool of it.

    A quarter of a pixel makes it defective: cracks are thin.
    """
    side, states = max(1, store.image_size // COARSE), store.array("mask_state")
    for start in range(0, len(store), 64):
        rows = np.arange(start, min(start + 64, len(store)))
        masks = torch.from_numpy(store.masks(rows)).float()[:, None]
        coarse = (F.adaptive_avg_pool2d(masks, side)[:, 0] >= 0.25).numpy()
        for row, mask in zip(rows.tolist(), coarse, strict=True):
            if states[row] != MaskState.MISSING:
                yield row, mask
