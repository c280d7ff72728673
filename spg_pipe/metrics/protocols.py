"""From images to a category's pixel metrics, by the protocol and accumulator of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.metrics.accumulators import HistogramAccumulator, Mask, SortAccumulator
from spg_pipe.metrics.pixel import PixelMetrics
from spg_pipe.metrics.published import spg_metrics

PROTOCOLS = ("exact", "spg")
ACCUMULATORS = ("sort", "histogram")

SORT_PIXELS = 2**24
"""Up to here `auto` sorts: 83 maps of 448×448, and at most about 0.4 GB while sorting."""

ImagePairs = Iterable[tuple[np.ndarray, Mask]]
A = TypeVar("A", SortAccumulator, HistogramAccumulator)


def chosen_accumulator(kind: str, pixels: int) -> str:
    """The accumulator for a category of so many pixels: "sort" or "histogram".

    `auto` sorts a small category, where it costs little and is exact, and counts a large one,
    where its memory would grow with the images. It depends on the category alone, never on the
    order or the number of workers.
    """
    if kind != "auto":
        return kind
    return "sort" if pixels <= SORT_PIXELS else "histogram"


def accumulate(
    make_iter: Callable[[], ImagePairs], kind: str = "histogram", protocol: str = "exact"
) -> PixelMetrics:
    """Pixel metrics of a category in one pass over its images, or two.

    Parameters
    ----------
    make_iter : starts a pass: yields (map, mask) of each image, (H, W) float32 in [0, 1] and
        (H, W) uint8 or its `Regions`. Called again if a histogram's error bound exceeds 1e-4.
    kind : "histogram" or "sort". Protocol spg always sorts.
    protocol : "exact" or "spg" (docs/metrics.md).

    Returns
    -------
    The metrics; `accumulator` names the one that gave the numbers.

    Raises
    ------
    SpgError : unknown kind or protocol, a map that is not one (see the accumulators' `update`),
        or protocol spg where the reference fails.
    """
    if kind not in ACCUMULATORS or protocol not in PROTOCOLS:
        raise SpgError(
            f"metrics.accumulator: {kind}, metrics.protocol: {protocol}; expected one of "
            f"{', '.join(ACCUMULATORS)} and one of {', '.join(PROTOCOLS)}. Correct params.yaml."
        )
    if protocol == "exact" and kind == "histogram":
        counted = _filled(HistogramAccumulator(), make_iter()).compute()
        if not counted.needs_fallback:
            return counted
    kept = _filled(SortAccumulator(), make_iter())
    return spg_metrics(kept) if protocol == "spg" else kept.compute()


def _filled(accumulator: A, images: ImagePairs) -> A:
    for anomaly_map, mask in images:
        accumulator.update(anomaly_map, mask)
    return accumulator
