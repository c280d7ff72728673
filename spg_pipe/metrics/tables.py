"""Tables a person reads: a row a category, their mean, and the mean over seeds.

NaN stands for an undefined metric. `flat_rows` gives what CSV files and JSON for scripts hold.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.metrics.curves import LIMITS
from spg_pipe.metrics.image_level import image_metrics
from spg_pipe.metrics.pixel import Counts, PixelMetrics

Cell = str | int | float | None | Sequence[str | int | None] | Mapping[str, int]

ZERO_SHOT = "labelled auxiliary set"
"""The supervision of a detector alone, unless the defects of its auxiliary set were painted."""
_PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max")
_AREAS = {
    "exact": tuple(f"pixel_aupro_{limit}" for limit in LIMITS),
    "spg": ("pixel_pro_fast", "pixel_pro_slow"),
}


@dataclass(frozen=True)
class RowContext:
    """Where all numbers of a table come from."""

    dataset: str  # target dataset
    split: str
    backbone: str
    seed: int | None  # None: over several, or a method without one
    resolution: str  # "model": maps and masks at S×S; "original": at each image's original size
    protocol: str = "exact"  # metrics.protocol
    method_protocol: str = "default"
    auxiliary: str = ""  # what the detector was fitted on
    method: str = ""  # kind of guides and rule of scoring
    supervision: str = ZERO_SHOT  # what the method was given besides the images that it judges


@dataclass(frozen=True)
class RowCounts:
    """What the metrics of a row were taken over; of a mean, the sums over categories."""

    images: int
    images_normal: int
    images_anomalous: int
    images_unknown: int  # without a label, left out
    images_without_mask: int  # anomalous, in the image metrics only
    pixels: int
    anomalous_pixels: int
    regions: int
    vanished_regions: int  # that resizing left without a pixel


@dataclass(frozen=True)
class MetricsRow:
    """The metrics of one category, or their mean over categories."""

    category: str  # "mean" of a mean
    accumulator: str  # "sort", "histogram" or "none"; of a mean "histogram+sort" if they differ
    metrics: Mapping[str, float]  # by name, in [0, 1]; NaN: undefined
    counts: RowCounts
    pixel_error_bound: float  # of a mean the largest
    # Of F1-max, and those of a calibration; empty of a mean.
    thresholds: Mapping[str, float] = field(default_factory=dict)
    # Over how many categories each metric's mean was taken; empty of a category.
    categories: Mapping[str, int] = field(default_factory=dict)
    # Sample standard deviation over seeds (n - 1), by metric; NaN of one seed.
    deviations: Mapping[str, float] = field(default_factory=dict)

    @property
    def undefined(self) -> list[str]:
        """Metrics that are NaN: a category has one class only, or no category has the metric."""
        return [name for name, value in self.metrics.items() if math.isnan(value)]


@dataclass(frozen=True)
class MetricsTable:
    """The metrics of one target: of one seed, or means over seeds."""

    context: RowContext
    categories: tuple[MetricsRow, ...]
    mean: MetricsRow
    seeds: tuple[int | None, ...] = ()  # those that were averaged; empty for a table of one

    @property
    def rows(self) -> tuple[MetricsRow, ...]:
        """The categories, then their mean."""
        return (*self.categories, self.mean)


def seen_in(synthetic: Mapping[str, object]) -> str:
    """The supervision of a detector alone, from what is known of its auxiliary set.

    `synthetic`: on how many `normal_images` the set's defects were painted; empty for real ones.
    """
    if not synthetic:
        return ZERO_SHOT
    number = synthetic["normal_images"]
    return f"synthetic defects on {number} normal image{'' if number == 1 else 's'}"


def category_metrics(
    category: str,
    image_labels: np.ndarray,
    image_scores: np.ndarray,
    pixel_metrics: PixelMetrics | None,
    *,
    protocol: str = "exact",
    images_without_mask: int = 0,
    vanished_regions: int = 0,
) -> MetricsRow:
    """The row of one category.

    An `SpgError` as of `image_metrics`, or if the pixel metrics are of another protocol.

    Parameters
    ----------
    image_labels, image_scores : (I,), as `image_metrics` takes them.
    pixel_metrics : of the images that have a mask; None if none has.
    images_without_mask, vanished_regions : go into the counts.
    """
    if pixel_metrics is not None and pixel_metrics.protocol != protocol:
        raise SpgError(
            f"{category}: pixel metrics of protocol {pixel_metrics.protocol} in a table of "
            f"protocol {protocol}. Evaluate again with one metrics.protocol."
        )
    image = image_metrics(image_labels, image_scores, protocol)
    pixels = pixel_metrics.counts if pixel_metrics else Counts()
    return MetricsRow(
        category=category,
        accumulator=pixel_metrics.accumulator if pixel_metrics else "none",
        metrics={
            "image_auroc": image.auroc,
            "image_ap": image.ap,
            "image_f1_max": image.f1_max,
            **_pixel_values(pixel_metrics, protocol),
        },
        counts=RowCounts(
            images=len(image_labels),
            images_normal=image.normal,
            images_anomalous=image.anomalous,
            images_unknown=image.unknown,
            images_without_mask=images_without_mask,
            pixels=pixels.pixels,
            anomalous_pixels=pixels.anomalous_pixels,
            regions=pixels.regions,
            vanished_regions=vanished_regions,
        ),
        pixel_error_bound=pixel_metrics.error_bound if pixel_metrics else 0.0,
        thresholds={
            "image_f1_threshold": image.f1_threshold,
            "pixel_f1_threshold": pixel_metrics.f1_threshold if pixel_metrics else math.nan,
        },
    )


def _pixel_values(pixel_metrics: PixelMetrics | None, protocol: str) -> dict[str, float]:
    if pixel_metrics is None:
        return dict.fromkeys(_PIXEL + _AREAS[protocol], math.nan)
    areas = [*pixel_metrics.aupro.values(), *pixel_metrics.pro.values()]
    if pixel_metrics.counts.anomalous_pixels == 0:
        # The reference's fast PRO is 0 without a region. As a category's figure it would lower the
        # mean by something that nobody measured; the other pixel metrics are NaN there already.
        areas = [math.nan] * len(areas)
    values = (pixel_metrics.auroc, pixel_metrics.ap, pixel_metrics.f1_max, *areas)
    return dict(zip(_PIXEL + _AREAS[protocol], values, strict=True))


def with_mean(context: RowContext, rows: Sequence[MetricsRow]) -> MetricsTable:
    """A table of categories and their mean, without weights.

    A category where a metric is NaN is left out of that metric's mean. An `SpgError` if there are
    no rows, or rows with different metrics.
    """
    if not rows:
        raise SpgError("mean of metrics: no rows. Evaluate at least one category first.")
    names = list(rows[0].metrics)
    if other := next((row for row in rows if list(row.metrics) != names), None):
        raise SpgError(
            f"mean of metrics: {rows[0].category} has {', '.join(names)}, and {other.category} has "
            f"{', '.join(other.metrics)}. Evaluate all categories with one metrics.protocol."
        )
    mean = replace(
        _averaged(rows),
        category="mean",
        counts=RowCounts(*map(sum, zip(*(astuple(row.counts) for row in rows), strict=True))),
        categories={name: len(values) for name, values in _known(rows).items()},
    )
    return MetricsTable(context, tuple(rows), mean)


def seeds_mean(tables: Sequence[MetricsTable]) -> MetricsTable:
    """One table from several that differ in the seed: each metric's mean and deviation.

    An `SpgError` if there are no tables, a seed twice, or tables that differ in more than the seed.
    """
    if not tables:
        raise SpgError("mean over seeds: no tables. Evaluate at least one seed first.")
    contexts = [table.context for table in tables]
    for name in (each.name for each in fields(RowContext) if each.name != "seed"):
        values = sorted({str(getattr(context, name)) for context in contexts})
        if len(values) > 1:
            raise SpgError(
                f"mean over seeds: tables of different {name}: {', '.join(values)}; a mean needs "
                "tables of one. Average them separately."
            )
    seeds = tuple(context.seed for context in contexts)
    names = [[row.category for row in table.categories] for table in tables]
    if len(set(seeds)) < len(seeds) or any(each != names[0] for each in names):
        raise SpgError(
            f"mean over seeds: {len(tables)} tables of seeds {', '.join(map(str, seeds))} with "
            f"{', '.join(str(len(each)) for each in names)} categories; expected different seeds "
            "and the same categories. Evaluate each seed once on the same target."
        )
    *categories, mean = map(_over_seeds, zip(*(table.rows for table in tables), strict=True))
    return MetricsTable(replace(contexts[0], seed=None), tuple(categories), mean, seeds)


def _over_seeds(rows: Sequence[MetricsRow]) -> MetricsRow:
    deviations = {
        name: float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        for name, values in _known(rows).items()
    }
    return replace(_averaged(rows), deviations=deviations)


def _averaged(rows: Sequence[MetricsRow]) -> MetricsRow:
    """The first row with the means of all; a row where a metric is NaN is left out of its mean."""
    return replace(
        rows[0],
        accumulator="+".join(sorted({row.accumulator for row in rows})),
        metrics={n: float(np.mean(v)) if v else math.nan for n, v in _known(rows).items()},
        pixel_error_bound=max(row.pixel_error_bound for row in rows),
        thresholds={},  # a threshold belongs to one category's scores of one seed
    )


def _known(rows: Sequence[MetricsRow]) -> dict[str, list[float]]:
    """The values that are not NaN of each metric that all rows have: of all seeds, perhaps only
    some were judged at thresholds."""
    shared = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    every = {name: [row.metrics[name] for row in rows] for name in shared}
    return {name: [v for v in values if not math.isnan(v)] for name, values in every.items()}


def flat_rows(table: MetricsTable) -> list[dict[str, Cell]]:
    """The rows of a table with its context in each: for CSV files, and JSON for scripts.

    "kind" is "category" or "mean"; a metric's deviation over seeds is "<metric>_std".
    """
    rows: list[dict[str, Cell]] = []
    for row in table.rows:
        flat: dict[str, Cell] = {
            "kind": "mean" if row is table.mean else "category",
            "category": row.category,
            **asdict(table.context),
            "accumulator": row.accumulator,
            **row.metrics,
            **{f"{name}_std": value for name, value in row.deviations.items()},
            **row.thresholds,
            "pixel_error_bound": row.pixel_error_bound,
            **asdict(row.counts),
            "undefined": row.undefined,
        }
        if table.seeds:
            flat["seeds"] = list(table.seeds)
        if row is table.mean:
            flat["categories"] = row.categories
        rows.append(flat)
    return rows


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV: columns in the order of their first appearance, floats in full.

    NaN is "nan", a list "a;b", a mapping "a=1;b=2"; a column that a row lacks stays empty.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        return ";".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return value
