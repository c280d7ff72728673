"""Two accumulators of pixel scores: images in any order, on several workers, merged at the end.

`SortAccumulator` keeps every score and is exact. `HistogramAccumulator` keeps three arrays of
131,072 counts whatever the number of images, and states how far its numbers can be from the exact
ones. Both give the same result for the same images in any order and any merging, to the last bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.metrics.curves import Groups
from spg_pipe.metrics.logit_keys import lowest_score, score_bins, score_keys
from spg_pipe.metrics.pixel import Counts, PixelMetrics, exact_metrics, grouped_metrics
from spg_pipe.metrics.regions import Regions

BINS = 131_072
# Weights 1/area are counted in whole 2^-40ths: integers add up alike in any order. A region of
# 10^6 pixels is then off by 5e-7, which the error bound includes.
_UNIT = 2**40
_MAX_REGIONS = 2**22  # 2^22 regions of weight 2^40 stay below 2^63


Mask = np.ndarray | Regions
"""A mask, or what labelling it once gave."""


class SortedScores(NamedTuple):
    """All scores of a category, ascending."""

    normal: np.ndarray  # (N,) float32
    anomalous: np.ndarray  # (A,) float32
    area: np.ndarray  # (A,) int64, pixels of the region that the anomalous pixel belongs to


class SortAccumulator:
    """Keeps 4 bytes a normal pixel and 8 an anomalous one, and sorts once for every metric.

    Takes any finite scores, probabilities or not.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self._normal: list[np.ndarray] = []
        # Score and area in one integer: sorting it is fast, and ties end in one order.
        self._anomalous: list[np.ndarray] = []
        self._sorted = False

    def update(self, anomaly_map: np.ndarray, mask: Mask) -> None:
        """Add one image.

        An `SpgError` if shapes differ, or a score is not finite.

        Parameters
        ----------
        anomaly_map : (H, W) float32, finite.
        mask : (H, W) uint8, non-zero = anomalous; or the regions of one, labelled before.
        """
        scores, regions = _checked(anomaly_map, mask)
        # A copy of its own, without negative zeros, which sort as zeros but have other bits.
        scores = scores + np.float32(0)
        areas = regions.pixel_areas()
        self.counts += Counts(1, scores.size, len(areas), regions.count)
        if regions.count:
            places, normal = regions.places(), np.ones(scores.size, bool)
            normal[places] = False
            bits = _ordered_bits(scores[places]).astype(np.uint64)
            self._anomalous.append(bits << np.uint64(32) | areas.astype(np.uint64))
            scores = scores[normal]
        self._normal.append(scores)
        self._sorted = False

    def merge(self, other: SortAccumulator) -> None:
        """Add all images of another accumulator, which stays as it is."""
        self.counts += other.counts
        self._normal += other._normal
        self._anomalous += other._anomalous
        self._sorted = False

    def sorted(self) -> SortedScores:
        """All scores so far in ascending order; sorted again only after an update or a merge."""
        if not self._sorted:
            # The empty array: there may be no image, or no anomalous one.
            self._normal = [np.sort(np.concatenate([np.empty(0, np.float32), *self._normal]))]
            self._anomalous = [np.sort(np.concatenate([np.empty(0, np.uint64), *self._anomalous]))]
            self._sorted = True
        packed = self._anomalous[0]
        scores = _from_ordered_bits((packed >> np.uint64(32)).astype(np.uint32))
        area = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return SortedScores(self._normal[0], scores, area)

    def groups(self) -> Groups:
        """One group for each distinct anomalous score, and one for the normal scores between."""
        normal, anomalous, area = self.sorted()
        starts = np.flatnonzero(np.diff(anomalous, prepend=np.float32(np.nan)) != 0)
        distinct = anomalous[starts]
        below = np.searchsorted(normal, distinct, side="left")
        up_to = np.searchsorted(normal, distinct, side="right")
        n = 2 * len(distinct) + 1  # between, tie, between, tie, …, between; ascending
        count, score = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.float32)
        hits, overlap = np.zeros(n, dtype=np.int64), np.zeros(n)
        count[0::2] = np.append(below, len(normal)) - np.concatenate([[0], up_to])
        count[1::2] = up_to - below
        hits[1::2] = np.diff(starts, append=len(anomalous))
        if len(distinct):
            overlap[1::2] = np.add.reduceat(1.0 / area, starts)
        score[0] = normal[0] if len(normal) else 0.0
        score[1::2] = distinct
        score[2::2] = np.nextafter(distinct, np.float32(np.inf))
        return Groups(score[::-1], count[::-1], hits[::-1], overlap[::-1])

    def compute(self) -> PixelMetrics:
        """The exact metrics of all images so far; more may be added afterwards."""
        return exact_metrics(self.groups(), self.counts, "sort")


class HistogramAccumulator:
    """Counts in 131,072 bins, even in the logit, over the range of the scores seen so far.

    The bins start as fine as float32 itself and double in width, on a fixed grid, whenever a
    score falls outside: where they end depends on the lowest and highest score alone.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.normal, self.anomalous, self.overlap = np.zeros((3, BINS), dtype=np.int64)
        self._low, self._high = 2**31, -1  # range of keys seen
        self._level, self._base = 0, 0  # bin i holds the keys with key >> level == base + i
        self._max_area = 0
        self._room = np.empty(0, np.int64)  # the pixels' bins of one image; new memory is slow

    def update(self, anomaly_map: np.ndarray, mask: Mask) -> None:
        """Add one image, as `SortAccumulator.update` does; SpgError if a score is beyond [0, 1]."""
        scores, regions = _checked(anomaly_map, mask)
        ends = np.array([scores.min(), scores.max()])
        if ends[0] < 0 or ends[1] > 1:
            raise SpgError(
                f"anomaly map with scores from {ends[0]:g} to {ends[1]:g}: the histogram "
                "takes probabilities in [0, 1]. Set metrics.accumulator: sort for other scores."
            )
        self._cover(*score_keys(ends).tolist())
        if len(self._room) < scores.size:
            self._room = np.empty(scores.size, np.int64)
        bins = self._room[: scores.size]
        score_bins(scores, self._level, self._base, bins)
        self.normal += np.bincount(bins, minlength=BINS)
        areas = regions.pixel_areas()
        if regions.count:
            # Few pixels: going to their bins one by one beats passing over all bins three times.
            inside = bins[regions.places()]
            np.subtract.at(self.normal, inside, 1)
            np.add.at(self.anomalous, inside, 1)
            np.add.at(self.overlap, inside, np.rint(_UNIT / areas).astype(np.int64))
            self._max_area = max(self._max_area, int(areas.max()))
        self.counts += Counts(1, scores.size, len(areas), regions.count)

    def merge(self, other: HistogramAccumulator) -> None:
        """Add all images of another accumulator, which stays as it is."""
        if other.counts.images == 0:
            return
        self.counts += other.counts
        self._cover(other._low, other._high)
        target = self._targets(other._level, other._base)
        for ours, theirs in zip(self._arrays(), other._arrays(), strict=True):
            occupied = theirs != 0
            np.add.at(ours, target[occupied], theirs[occupied])
        self._max_area = max(self._max_area, other._max_area)

    def groups(self) -> Groups:
        """One group for each bin that holds a pixel."""
        bins = self._occupied()
        return Groups(
            score=lowest_score((bins + self._base) << self._level),
            normal=self.normal[bins],
            anomalous=self.anomalous[bins],
            overlap=self.overlap[bins] / _UNIT,
        )

    def compute(self) -> PixelMetrics:
        """The metrics of all images so far, with `error_bounds`; more may be added afterwards.

        An `SpgError` if there are more regions than the histogram's integers can weigh (4 million).
        """
        if self.counts.regions > _MAX_REGIONS:
            raise SpgError(
                f"{self.counts.regions:,} anomalous regions in one category; the histogram can "
                f"weigh {_MAX_REGIONS:,}. Set metrics.accumulator: sort."
            )
        groups = self.groups()
        # Near 1 floats lie farther apart than bins: what shares a bin there is equal.
        after = lowest_score((self._occupied() + self._base + 1) << self._level)
        tied = np.nextafter(groups.score, np.float32(2)) >= after
        metrics = grouped_metrics(groups, self.counts, "histogram", tied)
        # A region's weights are off by area/2^41 of their sum, and so is the sum of all.
        rounding = self._max_area / _UNIT
        bounds = {
            name: bound + rounding * name.startswith("aupro")
            for name, bound in metrics.error_bounds.items()
        }
        return replace(metrics, error_bounds=bounds)

    def _occupied(self) -> np.ndarray:
        return np.flatnonzero(self.normal + self.anomalous)[::-1]

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.normal, self.anomalous, self.overlap

    def _cover(self, low: int, high: int) -> None:
        """Widen the bins until they cover these keys as well."""
        self._low, self._high = min(self._low, low), max(self._high, high)
        old_level, old_base = self._level, self._base
        while (self._high >> self._level) - (self._low >> self._level) >= BINS:
            self._level += 1
        self._base = self._low >> self._level
        if (self._level, self._base) == (old_level, old_base):
            return
        target = self._targets(old_level, old_base)
        for counts in self._arrays():
            occupied = np.flatnonzero(counts)
            values = counts[occupied]
            counts[:] = 0
            np.add.at(counts, target[occupied], values)

    def _targets(self, level: int, base: int) -> np.ndarray:
        """Our bin for each bin of a grid that is as fine as ours or finer: (BINS,) int64."""
        return ((np.arange(BINS) + base) >> (self._level - level)) - self._base


def _checked(anomaly_map: np.ndarray, mask: Mask) -> tuple[np.ndarray, Regions]:
    """The map (H·W,) as float32, and the mask's regions."""
    if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape or anomaly_map.size == 0:
        raise SpgError(
            f"anomaly map of shape {anomaly_map.shape} with a mask of shape {mask.shape}: both "
            "must be (height, width) of the same image. Resize the mask to the map's size."
        )
    scores = np.asarray(anomaly_map, dtype=np.float32).ravel()
    if not (np.isfinite(scores.min()) and np.isfinite(scores.max())):
        raise SpgError(
            "anomaly map with NaN or infinite scores, which have no place in an order. Look for "
            "the image that gave them (spg-pipe score), and for NaN in the detector."
        )
    return scores, mask if isinstance(mask, Regions) else Regions.of(mask)


def _ordered_bits(scores: np.ndarray) -> np.ndarray:
    """(A,) float32 to uint32 in the same order: negatives reversed, positives above them."""
    bits = scores.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _from_ordered_bits(bits: np.ndarray) -> np.ndarray:
    return np.where(bits >> 31, bits ^ np.uint32(1 << 31), ~bits).view(np.float32)
