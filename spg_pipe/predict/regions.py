"""The regions of an anomaly map: connected pixels above a threshold, as places, figures and shapes.

Pixels that touch by a side or a corner are of one region, as in the metrics.
"""

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field
from scipy.ndimage import find_objects

from spg_pipe.artefacts.record import Count, ImageSide, Record
from spg_pipe.metrics.operating import above
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

    size: tuple[ImageSide, ImageSide]
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
    bbox: tuple[Count, Count, ImageSide, ImageSide]
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


def regions_of(anomaly_map: np.ndarray, threshold: float, most: int = MOST) -> Found:
    """The connected regions (8-connectivity) of a map above a threshold.

    The map is (H, W) float32 in [0, 1], at the size of the original image. Of the regions so many
    at `most` are described; the others are counted.
    """
    marked = above(anomaly_map, threshold)
    if not (rows := np.flatnonzero(marked.any(axis=1))).size:
        return Found((), 0)
    columns = np.flatnonzero(marked.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    box = slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)
    labels, count = label_regions(marked[box])
    values, peaks = anomaly_map[box], np.zeros(count + 1, np.float32)
    np.maximum.at(peaks, labels.reshape(-1), values.reshape(-1))
    places, regions = find_objects(labels), []
    for number, label in enumerate(1 + np.argsort(-peaks[1:], kind="stable")[:most], start=1):
        place = places[label - 1]
        corner = top + place[0].start, left + place[1].start
        regions.append(
            _region(number, labels[place] == label, values[place], corner, anomaly_map.shape)
        )
    return Found(tuple(regions), count - len(regions))


def _region(
    number: int,
    mask: np.ndarray,
    values: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, ...],
) -> Region:
    """A region from its mask and the map's values (h, w), whose first pixel is at `corner`."""
    (top, left), (height, width) = corner, mask.shape
    row, column = divmod(int(np.where(mask, values, -1).argmax()), width)
    peak, own = float(values[row, column]), values[mask]
    return Region(
        number=number,
        bbox=(left, top, width, height),
        area=len(own),
        peak=peak,
        peak_row=top + row,
        peak_column=left + column,
        # The mean of equal values may come out above them by its last bit.
        mean=min(float(own.mean(dtype=np.float64)), peak),
        polygon=_polygon(mask, corner),
        rle=_run_lengths(mask, corner, size),
    )


def _run_lengths(mask: np.ndarray, corner: tuple[int, int], size: tuple[int, ...]) -> RunLengths:
    """Of a mask (h, w) whose first pixel is at `corner` of an image (H, W)."""
    (top, left), height = corner, size[0]
    padded = np.pad(mask.T, ((0, 0), (1, 1)))
    column, ends = np.nonzero(padded[:, 1:] != padded[:, :-1])
    ends += (left + column) * height + top
    # What ends at the bottom of a column may go on at the top of the next: no end there.
    start, stop = ends[::2], ends[1::2]
    apart = start[1:] != stop[:-1]
    ends = np.stack([start[np.r_[True, apart]], stop[np.r_[apart, True]]], axis=1)
    counts = np.diff(ends.reshape(-1), prepend=0, append=height * size[1])
    counts = counts if counts[-1] else counts[:-1]
    return RunLengths(size=(height, size[1]), counts=tuple(counts.tolist()))


def _polygon(mask: np.ndarray, corner: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """The outer border of a mask (h, w) whose first pixel is at `corner`, simplified."""
    from skimage.measure import approximate_polygon, find_contours  # 0.4 s at the start of a run

    lines = find_contours(np.pad(mask, 1).astype(np.float64), 0.5, fully_connected="high")
    border = min(lines, key=lambda line: line[:, 0].min())  # holes begin below the region's top
    simple = approximate_polygon(border, TOLERANCE)
    closed = simple if len(simple) > 3 else border  # one that is thin would have no area
    return tuple((x + corner[1] - 0.5, y + corner[0] - 0.5) for y, x in closed[:-1].tolist())
