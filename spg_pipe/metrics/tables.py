"""Rows a person reads: a category's metrics, their mean, the mean over seeds.

A row is a plain dict: what it is about (`RowContext`), the metrics, and the counts behind them.
NaN stands for an undefined metric. table_files.py writes and reads tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.metrics.aupro import LIMITS
from spg_pipe.metrics.image_level import image_metrics
from spg_pipe.metrics.pixel import Counts, PixelMetrics

Row = dict[str, Any]

ZERO_SHOT = "labelled auxiliary set"
"""What a detector alone was allowed to see, unless the defects of its set were painted."""
_IMAGE = ("image_auroc", "image_ap", "image_f1_max")
_PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max")
_AREAS = {
    "exact": tuple(f"pixel_aupro_{limit}" for limit in LIMITS),
    "spg": ("pixel_pro_fast", "pixel_pro_slow"),
}
METRICS = _IMAGE + _PIXEL + _AREAS["exact"] + _AREAS["spg"]
_COUNTS = (
    "images",
    "images_normal",
    "images_anomalous",
    "images_unknown",
    "images_without_mask",
    "pixels",
    "anomalous_pixels",
    "regions",
    "vanished_regions",
)


@dataclass(frozen=True)
class RowContext:
    """What every row of a table says about where its numbers come from."""

    dataset: str  # target dataset
    split: str
    backbone: str
    seed: int | None
    resolution: str  # "model": maps and masks at S×S; "original": at each image's own size
    protocol: str = "exact"  # metrics.protocol
    method_protocol: str = "default"
    auxiliary: str = ""  # what the detector was fitted on
    method: str = ""  # kind of guides and rule of scoring
    sees: str = ZERO_SHOT  # what the method was allowed to see besides the image that it judges


def seen_in(synthetic: Mapping[str, Any]) -> str:
    """What a detector alone was allowed to see of its auxiliary set.

    Parameters
    ----------
    synthetic : on how many `normal_images` the set's defects were painted; empty for real ones.
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
    context: RowContext,
    images_without_mask: int = 0,
    vanished_regions: int = 0,
) -> Row:
    """The row of one category.

    Parameters
    ----------
    category : its name.
    image_labels : (I,) integers: 0 normal, 1 anomalous, 255 unknown (left out and counted).
    image_scores : (I,) floats.
    pixel_metrics : of the images that have a mask; None if none has.
    context : goes into the row.
    images_without_mask : anomalous images whose mask is missing: in the image metrics only.
    vanished_regions : regions that resizing left without a pixel.

    Returns
    -------
    The context, "kind" ("category"), "category", "accumulator" ("sort", "histogram" or "none"),
    the metrics, the F1 thresholds, "pixel_error_bound", the counts, and "undefined": the names of
    the metrics that are NaN because the category has one class only.

    Raises
    ------
    SpgError : see `image_metrics`; or the pixel metrics are of another protocol.
    """
    if pixel_metrics is not None and pixel_metrics.protocol != context.protocol:
        raise SpgError(
            f"{category}: pixel metrics of protocol {pixel_metrics.protocol} in a table of "
            f"protocol {context.protocol}. Evaluate again with one metrics.protocol."
        )
    image = image_metrics(image_labels, image_scores, context.protocol)
    counts = pixel_metrics.counts if pixel_metrics else Counts()
    row: Row = {
        "kind": "category",
        "category": category,
        **asdict(context),
        "accumulator": pixel_metrics.accumulator if pixel_metrics else "none",
        "image_auroc": image.auroc,
        "image_ap": image.ap,
        "image_f1_max": image.f1_max,
        **_pixel_values(pixel_metrics, context.protocol),
        "image_f1_threshold": image.f1_threshold,
        "pixel_f1_threshold": pixel_metrics.f1_threshold if pixel_metrics else math.nan,
        "pixel_error_bound": pixel_metrics.error_bound if pixel_metrics else 0.0,
        "images": len(image_labels),
        "images_normal": image.normal,
        "images_anomalous": image.anomalous,
        "images_unknown": image.unknown,
        "images_without_mask": images_without_mask,
        "pixels": counts.pixels,
        "anomalous_pixels": counts.anomalous_pixels,
        "regions": counts.regions,
        "vanished_regions": vanished_regions,
    }
    row["undefined"] = [name for name in _metrics_of([row]) if math.isnan(row[name])]
    return row


def macro_mean(rows: Sequence[Row]) -> Row:
    """The mean over categories, without weights; a category where a metric is NaN is left out.

    Returns
    -------
    A row of kind "mean" with the same context. "categories" says over how many categories each
    mean was taken; counts are sums, the error bound is the largest. A metric that no category has
    is NaN.

    Raises
    ------
    SpgError : no rows, or rows of different contexts.
    """
    context = _common(rows, leave_out=())
    mean: Row = {"kind": "mean", "category": "mean", **context}
    mean["accumulator"] = "+".join(sorted({str(row["accumulator"]) for row in rows}))
    categories = {}
    for name in _metrics_of(rows):
        values = [row[name] for row in rows if not math.isnan(row[name])]
        mean[name] = _mean(values)
        categories[name] = len(values)
    mean["pixel_error_bound"] = max(row["pixel_error_bound"] for row in rows)
    mean |= {name: sum(row[name] for row in rows) for name in _COUNTS}
    mean["undefined"] = [name for name, n in categories.items() if n == 0]
    mean["categories"] = categories
    return mean


def seeds_mean(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """One table from several that differ in the seed: each metric's mean and deviation.

    Parameters
    ----------
    tables : each the rows of one seed, the mean row included or not.

    Returns
    -------
    Rows with "seed" None, "seeds" (list), each metric's mean under its own name and its sample
    standard deviation (n - 1) under "<metric>_std", NaN for one seed. A seed where a metric is
    NaN is left out of both.

    Raises
    ------
    SpgError : no tables, a seed twice, or tables that differ in more than the seed.
    """
    context = _common([row for table in tables for row in table], leave_out=("seed",))
    seeds = [table[0]["seed"] for table in tables if table]
    by_name = [{(row["kind"], row["category"]): row for row in table} for table in tables]
    names = [list(rows) for rows in by_name]
    if len(set(seeds)) < len(tables) or any(n != names[0] for n in names):
        raise SpgError(
            f"mean over seeds: {len(tables)} tables of seeds {seeds} with "
            f"{[len(n) for n in names]} rows; expected different seeds and the same categories. "
            "Evaluate each seed once on the same target."
        )
    return [_over_seeds([rows[name] for rows in by_name], seeds, context) for name in names[0]]


def _over_seeds(rows: Sequence[Row], seeds: Sequence[Any], context: Row) -> Row:
    first = rows[0]
    out: Row = {"kind": first["kind"], "category": first["category"], **context}
    out |= {"seed": None, "seeds": list(seeds)}
    out["accumulator"] = "+".join(sorted({str(row["accumulator"]) for row in rows}))
    for name in _metrics_of(rows):
        values = [row[name] for row in rows if not math.isnan(row[name])]
        out[name] = _mean(values)
        out[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    out["pixel_error_bound"] = max(row["pixel_error_bound"] for row in rows)
    return out | {k: first[k] for k in (*_COUNTS, "undefined", "categories") if k in first}


def curve_rows(category: str, pixel_metrics: PixelMetrics) -> list[Row]:
    """The curves to plot as rows: category, curve ("roc", "pr", "pro"), x and y in [0, 1]."""
    return [
        {"category": category, "curve": name, "x": float(x), "y": float(y)}
        for name, curve in pixel_metrics.curves.items()
        for x, y in zip(curve.x, curve.y, strict=True)
    ]


def _pixel_values(pixel_metrics: PixelMetrics | None, protocol: str) -> Row:
    if pixel_metrics is None:
        return dict.fromkeys(_PIXEL + _AREAS[protocol], math.nan)
    pro = pixel_metrics.pro
    if pixel_metrics.counts.anomalous_pixels == 0:
        # The reference's fast PRO is 0 without a region. As a category's figure it would lower the
        # mean by something that nobody measured; the other pixel metrics are NaN there already.
        pro = dict.fromkeys(pro, math.nan)
    return {
        "pixel_auroc": pixel_metrics.auroc,
        "pixel_ap": pixel_metrics.ap,
        "pixel_f1_max": pixel_metrics.f1_max,
        **{f"pixel_aupro_{limit}": value for limit, value in pixel_metrics.aupro.items()},
        **{f"pixel_pro_{name}": value for name, value in pro.items()},
    }


def _metrics_of(rows: Sequence[Row]) -> list[str]:
    return [name for name in METRICS if name in rows[0]]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _common(rows: Sequence[Row], leave_out: Sequence[str]) -> Row:
    """The context that all rows share; an error names what they do not."""
    if not rows:
        raise SpgError("mean of metrics: no rows. Evaluate at least one category first.")
    names = [field.name for field in fields(RowContext) if field.name not in leave_out]
    for name in names:
        found = {row.get(name, "") for row in rows}  # tables of earlier versions lack some
        if len(found) > 1:
            raise SpgError(
                f"mean of metrics: rows of different {name}: {', '.join(sorted(map(str, found)))}"
                "; a mean needs rows of one. Average them separately."
            )
    return {name: rows[0].get(name, "") for name in names}
