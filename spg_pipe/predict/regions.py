"""The regions of an anomaly map: connected pixels above a threshold, as places, figures and shapes.

Pixels that touch by a side or a corner are of one region, as in the metrics. No Python runs over
pixels: a region is its runs, pieces of rows or columns, and all regions are worked on together.
"""

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field

from spg_pipe.artefacts.record import Count, Record, Size
from spg_pipe.metrics.regions import label_regions

MOST = 100
"""Regions that are listed of an image: its line stays short, whatever the map."""
TOLERANCE = 1.0
"""Pixels that a polygon may be off a region's border, which the run lengths keep exactly."""
Unit = Annotated[float, Field(ge=0, le=1)]
PUBLISHED = ConfigDict(
    use_attribute_docstrings=True,
    json_schema_serialization_defaults_required=True,
    # Readers are to accept fields that a later version adds.
    json_schema_extra=lambda schema: schema.pop("additionalProperties", None),
)
"""Of records whose JSON Schema is published: their docstrings are its descriptions."""


class RunLengths(Record):
    """A mask as COCO writes it, uncompressed."""

    model_config = PUBLISHED

    size: tuple[Size, Size]
    """Height and width of the image, pixels."""
    counts: tuple[Count, ...]
    """Pixels outside, inside, outside, …: column after column, each from its top."""

    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.size[::-1]).T


class Region(Record):
    """A connected region of the map above the pixel threshold, in pixels of the original image."""

    model_config = PUBLISHED

    number: Annotated[int, Field(ge=1)]
    """From 1, the highest peak first."""
    bbox: tuple[Count, Count, Size, Size]
    """Left, top, width, height."""
    area: Annotated[int, Field(ge=1)]
    """Pixels."""
    peak: Unit
    """The map's highest value in it."""
    peak_row: Count
    peak_column: Count
    mean: Unit
    """The map's mean in it."""
    polygon: Annotated[tuple[tuple[float, float], ...], Field(min_length=3)]
    """[x, y] along its outer border, within a pixel of it; the first pixel covers 0 to 1."""
    rle: RunLengths
    """Its pixels, exactly."""


class Found(NamedTuple):
    """The regions of a map."""

    regions: tuple[Region, ...]
    """The highest peaks first."""
    left_out: int
    """How many more there are."""


def above(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The pixels of a map (H, W) float32 that are anomalous: bool. One rule for all results."""
    limit = np.float32(threshold)
    # The next float32 below gives the answers of the threshold itself, without a float64 map.
    return anomaly_map > (limit if limit <= threshold else np.nextafter(limit, np.float32(-1)))


def regions_of(anomaly_map: np.ndarray, threshold: float, most: int = MOST) -> Found:
    """The connected regions (8-connectivity) of a map above a threshold.

    Parameters
    ----------
    anomaly_map : (H, W) float32 in [0, 1]
        At the size of the original image.
    threshold : float
        A pixel belongs to a region if its value is above it.
    most : int
        Regions to describe; the others are counted.
    """
    marked = above(anomaly_map, threshold)
    rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
    if not len(rows):
        return Found((), 0)
    top, left = int(rows[0]), int(columns[0])
    box = slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)
    labels, count = label_regions(marked[box])
    values = np.ascontiguousarray(anomaly_map[box])
    runs = _runs(labels)
    highest = _reduced(np.maximum, values, runs)
    sums = _reduced(np.add, values, runs)
    order, firsts = _by_region(runs)
    peaks = np.maximum.reduceat(highest[order], firsts)
    means = np.add.reduceat(sums[order], firsts) / np.add.reduceat(runs.lengths[order], firsts)
    ranked = np.argsort(-peaks, kind="stable")[:most]
    number = np.zeros(count + 1, labels.dtype)
    number[ranked + 1] = np.arange(1, len(ranked) + 1)
    labels = number[labels]
    masks = _run_lengths(labels, anomaly_map.shape, (top, left))
    of_region = np.split(order, firsts[1:])
    regions = []
    for place, region in enumerate(ranked.tolist()):
        line, start, stop = (each[of_region[region]] for each in runs[1:])
        first = int(highest[of_region[region]].argmax())
        column = start[first] + values[line[first], start[first] : stop[first]].argmax()
        upper, lower, begin, end = line[0], line[-1] + 1, start.min(), stop.max()
        polygon = _polygon(labels[upper:lower, begin:end] == place + 1)
        polygon += left + begin, top + upper
        regions.append(
            Region(
                number=place + 1,
                bbox=(left + begin, top + upper, end - begin, lower - upper),
                area=int((stop - start).sum()),
                peak=float(peaks[region]),
                peak_row=top + int(line[first]),
                peak_column=left + int(column),
                # The mean of equal values may come out above them by its last bit.
                mean=min(float(means[region]), float(peaks[region])),
                polygon=tuple(map(tuple, polygon.tolist())),
                rle=masks[place],
            )
        )
    return Found(tuple(regions), count - len(ranked))


class _Runs(NamedTuple):
    """Runs of pixels of one region along the lines of an image, from the top."""

    region: np.ndarray
    line: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Pixels."""
        return self.stop - self.start


def _runs(labels: np.ndarray) -> _Runs:
    """The runs of labels (lines, pixels) int; 0 is of no region."""
    inside = np.pad(labels > 0, ((0, 0), (1, 1)))
    changes = np.flatnonzero(inside[:, 1:] != inside[:, :-1])
    line, place = np.divmod(changes, labels.shape[1] + 1)
    line, start, stop = line[::2], place[::2], place[1::2]
    return _Runs(labels[line, start], line, start, stop)


def _reduced(rule: np.ufunc, values: np.ndarray, runs: _Runs) -> np.ndarray:
    """The sum or the maximum, float64, of the values (lines, pixels) of each run."""
    ends = np.stack([runs.start, runs.stop], axis=1) + (runs.line * values.shape[1])[:, None]
    every = ends.reshape(-1)
    every = every[:-1] if every[-1] == values.size else every
    return rule.reduceat(values.reshape(-1), every, dtype=np.float64)[::2]


def _by_region(runs: _Runs) -> tuple[np.ndarray, np.ndarray]:
    """The order that brings the runs of a region together, and where each region then begins."""
    order = np.argsort(runs.region, kind="stable")
    return order, np.flatnonzero(np.diff(runs.region[order], prepend=0))


def _run_lengths(
    labels: np.ndarray, size: tuple[int, ...], corner: tuple[int, int]
) -> list[RunLengths]:
    """Of each region 1 … n of a piece (h, w) of the image, in the whole image (H, W)."""
    height, width = size
    runs = _runs(np.ascontiguousarray(labels.T))
    order, firsts = _by_region(runs)
    places = (runs.line + corner[1]) * height + corner[0]
    starts, stops = (
        np.split((places + each)[order], firsts[1:]) for each in (runs.start, runs.stop)
    )
    masks = []
    for start, stop in zip(starts, stops, strict=True):
        # What ends at the bottom of a column may go on at the top of the next.
        apart = start[1:] != stop[:-1]
        ends = np.stack([start[np.r_[True, apart]], stop[np.r_[apart, True]]], axis=1)
        counts = np.diff(ends.reshape(-1), prepend=0, append=height * width)
        counts = counts if counts[-1] else counts[:-1]
        masks.append(RunLengths(size=(height, width), counts=tuple(counts.tolist())))
    return masks


def _polygon(mask: np.ndarray) -> np.ndarray:
    """[x, y] (n, 2) along the outer border of a region (h, w) bool, simplified."""
    # Imported here: it brings scipy.stats, half a second.
    from skimage.measure import approximate_polygon, find_contours

    lines = find_contours(np.pad(mask, 1).astype(np.float64), 0.5, fully_connected="high")
    border = min(lines, key=lambda line: line[:, 0].min())  # holes begin below the region's top
    simple = approximate_polygon(border, TOLERANCE)
    closed = simple if len(simple) > 3 else border  # one that is thin would have no area
    return closed[:-1, ::-1] - 0.5
