"""Scores against masks and labels → Metrics, one row a category (docs/metrics.md)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from spg_pipe.artefacts.digests import file_digests
from spg_pipe.artefacts.files import versions, write_json, write_text
from spg_pipe.artefacts.record import write_record
from spg_pipe.datasets.manifest import Manifest, MaskState
from spg_pipe.decision.calibration import Calibration, by_hand
from spg_pipe.detector.mask_regions import MaskRegions
from spg_pipe.detector.metrics_file import MetricsRecord, Provenance
from spg_pipe.detector.record import ScoresRecord
from spg_pipe.detector.scores import CHUNK_IMAGES, Progress, Scores
from spg_pipe.errors import SpgError
from spg_pipe.metrics import (
    Curve,
    MetricsRow,
    MetricsTable,
    PixelMetrics,
    Regions,
    RowContext,
    accumulate,
    category_metrics,
    chosen_accumulator,
    csv_text,
    flat_rows,
    with_mean,
)
from spg_pipe.metrics.operating import AtThreshold
from spg_pipe.recipe.params import MetricParams
from spg_pipe.store.reader import FeatureStore

_CURVE_GRID = 200
Curves = dict[str, Mapping[str, Curve]]
"""Category → "roc", "pr" and "pro" → the curve of its pixels."""


@dataclass(frozen=True)
class Evaluation:
    """The table of one target, and its curves for plotting."""

    table: MetricsTable
    curves: Curves
    provenance: Provenance

    def save(self, path: Path) -> None:
        """Write <run>.json, <run>.csv, curves/<run>-{categories,roc,pr,pro}.csv, means/<run>.json.

        The last is for `dvc metrics show`, which would show texts as metrics: numbers alone, below
        the names of both protocols.
        """
        context = self.table.context
        # A file may travel without the table beside it, so each names what it was made under.
        named = {
            "protocol": context.protocol,
            "method_protocol": context.method_protocol,
            "method": context.method,
            "supervision": context.supervision,
        }
        points = {kind: _points(_mean_curve(self.curves, kind)) for kind in ("roc", "pr", "pro")}
        points["categories"] = [
            {"category": category, "curve": kind} | point
            for category, curves in self.curves.items()
            for kind, curve in curves.items()
            for point in _points(curve)
        ]
        texts = {path.with_suffix(".csv"): csv_text(flat_rows(self.table))}
        for name, rows in points.items():
            file = path.parent / "curves" / f"{path.stem}-{name}.csv"
            texts[file] = csv_text([row | named for row in rows])
        defined = {k: v for k, v in self.table.mean.metrics.items() if math.isfinite(v)}
        protocols = f"method {context.method_protocol}, metrics {context.protocol}"
        means = path.parent / "means" / path.name
        path.unlink(missing_ok=True)  # no record, no metrics: none of other tables is beside these
        try:
            for file, text in texts.items():
                write_text(file, text)
            write_json(means, {protocols: defined})
            names = [file.relative_to(path.parent).as_posix() for file in (*texts, means)]
            digests = file_digests(path.parent, *names)
            write_record(path, MetricsRecord.of(self.table, self.provenance, digests))
        except BaseException:
            for file in (*texts, means):
                file.unlink(missing_ok=True)
            raise


def evaluate_scores(
    scores: Scores,
    store: FeatureStore,
    params: MetricParams,
    *,
    manifest: Manifest | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    judged: Iterable["JudgedCategory"] | None = None,
) -> Evaluation:
    """Image and pixel metrics of every category, and their unweighted mean.

    An `SpgError` if the scores belong to another store, the manifest is needed and absent, or the
    calibration has no threshold for a category.

    Parameters
    ----------
    store : FeatureStore
        The target's store: masks at S×S and labels.
    manifest : Manifest, optional
        Needed for `resolution: original`, which reads the masks at the images' own sizes.
    calibration : Calibration, optional
        Adds precision, recall and false-positive rate at its thresholds to every row.
    progress : callable (images done, images in all), optional
    judged : iterable of JudgedCategory, optional
        All of them in any order, if they are made elsewhere, by `category_judge`.
    """
    if scores.record.store != store.fingerprint:
        raise SpgError(
            f"{scores.path} was scored from another store than {store.path}. "
            "Run `spg-pipe score` again."
        )
    images = scores.table
    if judged is None:
        judge = category_judge(scores, store, params, manifest, calibration)
        judged = map(judge, categories_of(scores))
    rows, curves, done = dict[str, MetricsRow](), Curves(), 0
    for each in judged:
        rows[each.category] = each.row
        if each.curves is not None:
            curves[each.category] = each.curves
        done += each.images
        if progress:
            progress(done, len(images))
    order = categories_of(scores)
    table = with_mean(_context(scores.record, params), [rows[category] for category in order])
    made = calibration.fingerprint if calibration else None
    drawn = {category: curves[category] for category in order if category in curves}
    return Evaluation(table, drawn, _provenance(scores.record, params, made))


class JudgedCategory(NamedTuple):
    """What the metrics of one category are: what one process computes by itself."""

    category: str
    images: int
    row: MetricsRow
    curves: Mapping[str, Curve] | None
    """None where no mask is known."""


def categories_of(scores: Scores) -> list[str]:
    """In the order of the table."""
    return list(dict.fromkeys(scores.table["category"]))


def category_judge(
    scores: Scores,
    store: FeatureStore,
    params: MetricParams,
    manifest: Manifest | None = None,
    calibration: Calibration | None = None,
) -> Callable[[str], JudgedCategory]:
    """What judges a category; parameters and errors as of `evaluate_scores`."""
    if params.resolution == "original" and manifest is None:
        raise SpgError("metrics.resolution: original needs the dataset's images and manifest.")
    masks = MaskRegions(store, manifest if params.resolution == "original" else None)
    images, lost = scores.table, store.array("lost_regions")

    def judge(category: str) -> JudgedCategory:
        chosen = np.flatnonzero(images["category"] == category)
        at = _at_thresholds(calibration, category)
        pixel = _pixel_metrics(scores, store, chosen, params, masks, at["pixel"])
        row = _row(category, images.iloc[chosen], pixel, lost[chosen], params)
        if calibration is not None:
            known = images.iloc[chosen][images["label"].iloc[chosen] <= 1]
            at["image"].add(known["score"].to_numpy(), known["label"].to_numpy() == 1)
            row = with_figures(row, at)
        return JudgedCategory(category, len(chosen), row, pixel.curves if pixel else None)

    return judge


def _row(
    category: str,
    images: "pd.DataFrame",
    pixel: PixelMetrics | None,
    lost: np.ndarray,
    params: MetricParams,
) -> MetricsRow:
    """Of a category's rows of scores, and how many regions each image lost by resizing."""
    labels = images["label"].to_numpy()
    missing = images["mask_state"].to_numpy() == MaskState.MISSING
    return category_metrics(
        category,
        labels,
        images["score"].to_numpy(),
        pixel,
        protocol=params.protocol,
        images_without_mask=int((missing & (labels == 1)).sum()),
        vanished_regions=int(lost.sum()) if params.resolution == "model" else 0,
    )


def _at_thresholds(calibration: Calibration | None, category: str) -> dict[str, AtThreshold]:
    """What counts a category's images and pixels at their thresholds."""
    limits = calibration.limits(category) if calibration else by_hand(None, None)
    return {
        "image": AtThreshold(limits.image.value if limits.image else None),
        "pixel": AtThreshold(limits.pixel.value if limits.pixel else None),
    }


def with_figures(row: MetricsRow, at: Mapping[str, AtThreshold]) -> MetricsRow:
    """The row of a category with its figures at the thresholds of images and of pixels."""
    figures = {k: v for what, each in at.items() for k, v in each.figures(what).items()}
    known = {f"{what}_threshold": each.threshold for what, each in at.items()}
    thresholds = {name: math.nan if value is None else value for name, value in known.items()}
    return replace(
        row, metrics={**row.metrics, **figures}, thresholds={**row.thresholds, **thresholds}
    )


def _context(record: ScoresRecord, params: MetricParams) -> RowContext:
    spec = record.backbone
    layers = "+".join(spec.layers)
    return RowContext(
        dataset=record.dataset,
        split=record.split,
        backbone=f"{spec.seen_at} layers {layers} ({spec.norm}-norm)",
        seed=record.seed,
        resolution=params.resolution,
        protocol=params.protocol,
        method_protocol=record.method_protocol,
        method=record.method,
        supervision=record.supervision,
        auxiliary=record.auxiliary,
    )


def _pixel_metrics(
    scores: Scores,
    store: FeatureStore,
    images: np.ndarray,
    params: MetricParams,
    masks: MaskRegions,
    at: AtThreshold,
) -> PixelMetrics | None:
    """Of the images whose mask is known; None where there is none. One map is held at a time.

    `at` counts their pixels as well.
    """
    states = store.array("mask_state")[images]
    images = images[states != MaskState.MISSING]
    if len(images) == 0:
        return None

    def pairs() -> Iterator[tuple[np.ndarray, Regions]]:
        at.clear()  # a histogram that is not exact enough asks for a second pass
        for start in range(0, len(images), CHUNK_IMAGES):
            batch = images[start : start + CHUNK_IMAGES]
            patches = scores.patches(batch)  # a few kilobytes an image; full-size maps are not
            kept = scores.kept(batch)
            for number, image in enumerate(batch.tolist()):
                one = {layer: values[number : number + 1] for layer, values in patches.items()}
                if kept is None:
                    regions = masks.regions(image)
                    anomaly_map = scores.maps_of(one, regions.shape)[0]
                else:
                    own, shape = kept.some(slice(number, number + 1)), masks.shape(image)
                    counts = (own.at(shape)[0] > 0).numpy()
                    regions = masks.regions(image, counts)
                    anomaly_map = scores.maps_of(one, shape, own)[0][counts][None]
                at.add(anomaly_map, regions.places())
                yield anomaly_map, regions

    kind = chosen_accumulator(params.accumulator, sum(masks.pixels(i) for i in images.tolist()))
    return accumulate(pairs, kind, params.protocol)


def _provenance(record: ScoresRecord, params: MetricParams, calibration: str | None) -> Provenance:
    origin = record.detector
    return Provenance(
        scores=record.fingerprint,
        store=record.store,
        detector=origin.fingerprint if origin else None,
        metrics=params,
        calibration=calibration,
        method=record.method,
        supervision=record.supervision,
        seed=record.seed,
        auxiliary=origin.auxiliary if origin else None,
        sae_tokens_seen=origin.sae.tokens_seen if origin else None,
        guides=origin.guides if origin else None,
        licences=record.licences,
        versions=versions(),
    )


def _points(curve: Curve) -> list[dict[str, object]]:
    return [{"x": float(x), "y": float(y)} for x, y in zip(curve.x, curve.y, strict=True)]


def _mean_curve(curves: Curves, kind: str) -> Curve:
    """The mean over categories of a curve, on a common grid of x."""
    grid = np.linspace(0, 1, _CURVE_GRID + 1)
    lines = [
        np.interp(grid, curve.x, curve.y, right=np.nan)
        for curve in (each[kind] for each in curves.values())
        if len(curve.x)
    ]
    if not lines:
        return Curve(np.array([0.0, 1.0]), np.full(2, np.nan))
    mean = np.mean(lines, axis=0)
    # PRO of protocol spg ends below FPR 0.3: beyond it there is no curve to show.
    known = ~np.isnan(mean)
    return Curve(grid[known], mean[known])
