"""Regions of a mask: connected pixels, diagonal neighbours joined (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Regions:
    """The regions of one mask as runs of pixels: labelled once, some kilobytes to keep.

    A run is a piece of a row; the runs of an image are in row-major order.
    """

    shape: tuple[int, int]  # (H, W)
    count: int  # number of regions
    starts: np.ndarray  # (R,) int32, place of a run's first pixel in the flattened mask
    lengths: np.ndarray  # (R,) int32, pixels
    areas: np.ndarray  # (R,) int32, pixels of the region that the run belongs to

    @classmethod
    def of(cls, mask: np.ndarray) -> Regions:
        """Label a mask (H, W) of any dtype; non-zero is anomalous."""
        height, width = mask.shape
        rows, columns, regions, n = _anomalous(mask)
        if not n:
            return cls.none((height, width))
        places = rows * width + columns
        new = np.concatenate([[True], (np.diff(places) != 1) | (columns[1:] == 0)])
        firsts = np.flatnonzero(new)
        region, lengths = regions[firsts], np.diff(firsts, append=len(places))
        area = np.bincount(region, weights=lengths)[region]
        kept = (places[firsts], lengths, area)
        return cls((height, width), n, *(values.astype(np.int32) for values in kept))

    @classmethod
    def none(cls, shape: tuple[int, int]) -> Regions:
        """Of a mask (H, W) without an anomalous pixel."""
        empty = np.empty(0, np.int32)
        return cls(shape, 0, empty, empty, empty)

    def among(self, counts: np.ndarray) -> Regions:
        """The same among the pixels that count (H, W) bool, put in a row: all of theirs do."""
        ranks = np.cumsum(counts.ravel(), dtype=np.int64) - 1
        starts = ranks[self.starts].astype(np.int32)
        shape = (1, int(counts.sum()))
        return Regions(shape, self.count, starts, self.lengths, self.areas)

    @property
    def nbytes(self) -> int:
        """Memory of the runs, bytes."""
        return self.starts.nbytes + self.lengths.nbytes + self.areas.nbytes

    def places(self) -> np.ndarray:
        """(A,) int64: the anomalous pixels' places in the flattened mask, ascending."""
        before = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        return np.repeat(self.starts - before, self.lengths) + np.arange(self.lengths.sum())

    def pixel_areas(self) -> np.ndarray:
        """(A,) int64: the area of each anomalous pixel's region. The sum of 1/areas is `count`."""
        return np.repeat(self.areas.astype(np.int64), self.lengths)


def label_regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the connected regions of a mask (H, W), diagonal neighbours joined (8-connectivity).

    Gives the labels, (H, W) int32, 0 outside regions, 1 … n inside; and n.
    """
    from scipy import ndimage

    labels, n = ndimage.label(mask != 0, structure=np.ones((3, 3), dtype=bool))
    return labels, int(n)


def _anomalous(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Row, column and region of each anomalous pixel (A,), in row-major order; and how many."""
    marked_rows = np.flatnonzero(mask.any(axis=1))
    if not len(marked_rows):
        return marked_rows, marked_rows, marked_rows, 0
    # Regions lie in the defects' bounding box, mostly a small part of the image.
    marked_columns = np.flatnonzero(mask.any(axis=0))
    top, left = marked_rows[0], marked_columns[0]
    labels, n = label_regions(mask[top : marked_rows[-1] + 1, left : marked_columns[-1] + 1])
    rows, columns = np.nonzero(labels)
    return rows + top, columns + left, labels[rows, columns], n


def vanished_regions(original_mask: np.ndarray, resized_mask: np.ndarray) -> int:
    """Count the regions of the original mask that have no pixel left in the resized one.

    A region is still there if the place of one of its pixels' centres is anomalous in the resized
    mask. Regions that merely merge have not vanished. Masks are (H, W) and (h, w), non-zero is
    anomalous.
    """
    rows, columns, regions, n = _anomalous(original_mask)
    (height, width), (h, w) = original_mask.shape, resized_mask.shape
    # Centres (y + 1/2)·h/H in integers, so that no rounding decides which pixel they fall in.
    landed = resized_mask[(2 * rows + 1) * h // (2 * height), (2 * columns + 1) * w // (2 * width)]
    return n - int(np.count_nonzero(np.bincount(regions[landed != 0], minlength=n + 1)))
