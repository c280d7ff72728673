"""Scores against masks and labels: what counts, what is left out, what is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny import SCORE, SIZE, extracted, manifest_of, write_folder

from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.calibration import Calibration, Judging, Limits, by_hand
from spg_pipe.detector.evaluate import Evaluation, evaluate_scores
from spg_pipe.detector.metrics_file import read_metrics
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Ignored, Scores, score_store
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_mask
from spg_pipe.metrics import Regions, seeds_mean
from spg_pipe.recipe.params import MetricParams
from spg_pipe.report.tables import operating_table, text_table
from spg_pipe.store.reader import FeatureStore


def evaluated(root: Path, detector: Detector) -> Evaluation:
    """Of a folder of images, extracted and scored beside it."""
    store = extracted(manifest_of(root), root.parent / "a.zarr")
    scores = score_store(detector, store, root.parent / "scores", score=SCORE)
    return evaluate_scores(scores, store, MetricParams())


def calibration_of(groups: dict[str, Limits], *, by_folder: bool = False) -> Calibration:
    return Calibration(
        judging=Judging(detector="a"),
        method="manual",
        false_alarms=None,
        confidence=None,
        recall=None,
        by_folder=by_folder,
        groups=groups,
        notes=(),
        made=date(2026, 1, 1),
        valid_until=None,
        versions={},
    ).sealed()


@pytest.fixture(scope="module")
def evaluation(scores: Scores, tiny_store: FeatureStore) -> Evaluation:
    return evaluate_scores(scores, tiny_store, MetricParams())


def test_a_category_has_scikit_learns_image_metrics_over_all_its_images(
    evaluation: Evaluation, scores: Scores
) -> None:
    for row in evaluation.table.categories:
        table = scores.table[scores.table["category"] == row.category]
        for name, metric in (("auroc", roc_auc_score), ("ap", average_precision_score)):
            expected = metric(table["label"], table["score"])
            assert row.metrics[f"image_{name}"] == pytest.approx(expected)
        counts = row.counts
        assert (counts.images, counts.images_normal, counts.images_anomalous) == (8, 4, 4)


def test_pixel_metrics_leave_out_images_without_a_mask_and_count_them(
    evaluation: Evaluation, scores: Scores, tiny_store: FeatureStore
) -> None:
    for row, first in zip(evaluation.table.categories, (0, 8), strict=True):
        known = np.arange(first, first + 7)  # the eighth image has no mask
        masks, maps = tiny_store.masks(known), scores.maps(known)
        for name, metric in (("auroc", roc_auc_score), ("ap", average_precision_score)):
            expected = metric(masks.ravel(), maps.ravel())
            assert row.metrics[f"pixel_{name}"] == pytest.approx(expected, abs=1e-9)
        counts = row.counts
        assert (counts.images_without_mask, counts.pixels) == (1, 7 * SIZE * SIZE)
        assert counts.anomalous_pixels == int(masks.sum())


def test_every_number_carries_both_protocols(evaluation: Evaluation) -> None:
    context = evaluation.table.context
    assert (context.protocol, context.method_protocol) == ("exact", "default")
    assert (context.resolution, context.auxiliary, context.seed) == ("model", "parts", 111)


def test_the_files_hold_the_rows_the_curves_and_the_provenance(
    evaluation: Evaluation, scores: Scores, tmp_path: Path
) -> None:
    evaluation.save(tmp_path / "metrics" / "run.json")
    document = json.loads((tmp_path / "metrics/run.json").read_text())
    assert list(document["categories"]) == ["bolt", "nut"]
    assert document["mean"]["metrics"] == evaluation.table.mean.metrics
    assert read_metrics(tmp_path / "metrics/run.json").table == evaluation.table
    provenance = document["provenance"]
    assert (provenance["store"], provenance["guides"]["epochs"]) == (scores.record.store, 3)
    assert provenance["sae_tokens_seen"] == {"1": 768, "2": 192}
    rows = pd.read_csv(tmp_path / "metrics/run.csv")
    assert rows["category"].tolist() == ["bolt", "nut", "mean"]
    for kind in ("roc", "pr", "pro"):
        points = pd.read_csv(tmp_path / f"metrics/curves/run-{kind}.csv")
        assert set(zip(points["protocol"], points["method_protocol"], strict=True)) == {
            ("exact", "default")
        }
        assert points[["x", "y"]].stack().between(0, 1).all()
        assert points["x"].is_monotonic_increasing


@pytest.mark.parametrize("accumulator", ["auto", "sort", "histogram"])
def test_both_accumulators_agree(
    scores: Scores, tiny_store: FeatureStore, evaluation: Evaluation, accumulator: Any
) -> None:
    found = evaluate_scores(scores, tiny_store, MetricParams(accumulator=accumulator))
    for row, expected in zip(found.table.rows, evaluation.table.rows, strict=True):
        for name in ("pixel_auroc", "pixel_ap", "pixel_aupro_0.3"):
            assert row.metrics[name] == pytest.approx(expected.metrics[name], abs=1e-4)


def test_auto_counts_a_large_category_within_bounded_memory(
    scores: Scores, tiny_store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = evaluate_scores(scores, tiny_store, MetricParams()).table
    assert table.mean.accumulator == "sort"
    monkeypatch.setattr("spg_pipe.metrics.protocols.SORT_PIXELS", SIZE * SIZE)
    # Rough maps: finer ones would ask for the sort that the error bound falls back to.
    monkeypatch.setattr("spg_pipe.metrics.pixel.MAX_ERROR", 1.0)
    monkeypatch.setattr("spg_pipe.metrics.accumulators.SortAccumulator.update", lambda *_: 1 / 0)
    table = evaluate_scores(scores, tiny_store, MetricParams()).table
    assert {row.accumulator for row in table.rows} == {"histogram"}


def test_protocol_spg_has_its_own_columns(scores: Scores, tiny_store: FeatureStore) -> None:
    row = evaluate_scores(scores, tiny_store, MetricParams(protocol="spg")).table.mean
    assert {"pixel_pro_fast", "pixel_pro_slow"} <= set(row.metrics)
    assert "pixel_aupro_0.3" not in row.metrics


def test_the_original_resolution_uses_each_images_own_size(
    scores: Scores, tiny_store: FeatureStore, tiny_manifest: Manifest
) -> None:
    params = MetricParams(resolution="original")
    table = evaluate_scores(scores, tiny_store, params, manifest=tiny_manifest).table
    row = table.categories[0]
    masks = [
        read_mask(path, exif=True) if path else np.zeros((40, 48), np.uint8)
        for path in map(tiny_manifest.mask_path, range(7))
    ]
    maps = scores.maps(np.arange(7), (40, 48))
    auroc = roc_auc_score(np.stack(masks).ravel(), maps.ravel())
    assert row.metrics["pixel_auroc"] == pytest.approx(auroc, abs=1e-9)
    assert row.counts.pixels == 7 * 40 * 48
    assert row.counts.vanished_regions == 0
    assert table.context.resolution == "original"


@pytest.fixture(scope="module")
def ignored() -> Ignored:
    """Of every other image the right half, a column of it in part; of the others a corner."""
    shares = np.full((2, SIZE, SIZE), 255, np.uint8)
    shares[0, :, SIZE // 2 :] = 0
    shares[0, :, SIZE // 2] = 100
    shares[1, :9, :9] = 0
    return Ignored("d" * 64, shares, np.arange(16, dtype=np.int32) % 2)


def test_ignored_pixels_are_in_no_metric(
    tiny_store: FeatureStore, tiny_detector: Detector, ignored: Ignored, tmp_path: Path
) -> None:
    path = tmp_path / "scores"
    scores = score_store(tiny_detector, tiny_store, path, score=SCORE, ignored=ignored)
    loaded = Scores.load(path)
    assert loaded.record == scores.record
    assert loaded.record.ignored == ignored.digest
    table = evaluate_scores(loaded, tiny_store, MetricParams()).table
    assert table.context.method.endswith("a part ignored")
    for row, first in zip(table.categories, (0, 8), strict=True):
        known = np.arange(first, first + 7)
        counts = ignored.shares[ignored.of[known]] > 0
        masks, maps = tiny_store.masks(known), loaded.maps(known)
        assert (maps[~counts] == 0).all()
        for name, metric in (("auroc", roc_auc_score), ("ap", average_precision_score)):
            expected = metric(masks[counts], maps[counts])
            assert row.metrics[f"pixel_{name}"] == pytest.approx(expected, abs=1e-9)
        assert row.counts.pixels == counts.sum()
        assert row.counts.anomalous_pixels == masks[counts].sum()
        assert row.counts.regions == sum(
            Regions.of(mask * kept).count for mask, kept in zip(masks, counts, strict=True)
        )
    evaluate_scores(loaded, tiny_store, MetricParams(protocol="spg"))


def test_at_the_original_resolution_the_same_pixels_are_ignored(
    tiny_store: FeatureStore,
    tiny_detector: Detector,
    tiny_manifest: Manifest,
    ignored: Ignored,
    tmp_path: Path,
) -> None:
    scores = score_store(tiny_detector, tiny_store, tmp_path / "s", score=SCORE, ignored=ignored)
    params = MetricParams(resolution="original")
    row = evaluate_scores(scores, tiny_store, params, manifest=tiny_manifest).table.categories[0]
    maps = scores.maps(np.arange(7), (40, 48))
    counts = np.ones((7, 40, 48), bool)
    counts[::2, :, 26:] = False  # 17 of 32 columns count, 25½ of 48
    counts[1::2, :11, :13] = False  # all of these are in the corner of 9 of 32
    masks = [
        read_mask(path, exif=True) if path else np.zeros((40, 48), np.uint8)
        for path in map(tiny_manifest.mask_path, range(7))
    ]
    assert (maps[~counts] == 0).all()
    assert (maps[counts] > 0).all()
    expected = roc_auc_score(np.stack(masks)[counts], maps[counts])
    assert row.metrics["pixel_auroc"] == pytest.approx(expected, abs=1e-9)


def test_scores_without_masks_say_nothing_of_them(scores: Scores) -> None:
    assert "ignored" not in scores.record.content()
    assert scores.kept(np.arange(2)) is None


def test_the_original_resolution_needs_the_manifest(
    scores: Scores, tiny_store: FeatureStore
) -> None:
    with pytest.raises(SpgError, match="needs the dataset's images and manifest"):
        evaluate_scores(scores, tiny_store, MetricParams(resolution="original"))


def test_another_manifest_is_refused(
    scores: Scores, tiny_store: FeatureStore, tmp_path: Path
) -> None:
    other = manifest_of(write_folder(tmp_path / "parts", categories=("cog", "rod")))
    params = MetricParams(resolution="original")
    with pytest.raises(SpgError, match="do not list the same images"):
        evaluate_scores(scores, tiny_store, params, manifest=other)


def test_a_category_of_one_class_is_undefined_listed_and_left_out(
    tiny_detector: Detector, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "parts", categories=("bolt",))
    write_folder(root, categories=("perfect",), masked=0, missing=0, seed=3)
    evaluation = evaluated(root, tiny_detector)
    bolt, perfect, mean = evaluation.table.rows
    assert {"image_auroc", "pixel_auroc", "pixel_aupro_0.3"} <= set(perfect.undefined)
    assert mean.metrics == bolt.metrics
    assert mean.categories["image_auroc"] == 1
    evaluation.save(tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert saved["categories"]["perfect"]["metrics"]["image_auroc"] is None
    assert read_metrics(tmp_path / "run.json").table.rows[1].undefined == perfect.undefined


def test_a_category_without_any_mask_has_image_metrics_only(
    tiny_detector: Detector, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "parts", categories=("bolt",), masked=0, missing=3)
    write_folder(root, categories=("nut",))
    bolt, nut, mean = evaluated(root, tiny_detector).table.rows
    assert not math.isnan(bolt.metrics["image_auroc"])
    assert (bolt.counts.images_without_mask, bolt.counts.anomalous_pixels) == (3, 0)
    assert math.isnan(bolt.metrics["pixel_auroc"])
    assert mean.metrics["pixel_auroc"] == nut.metrics["pixel_auroc"]


def test_images_without_labels_are_counted_and_left_out(
    tiny_detector: Detector, tmp_path: Path
) -> None:
    root = write_folder(tmp_path / "parts", categories=("shots",), masked=0, missing=0)
    for i, path in enumerate(sorted((root / "shots/good").iterdir())):
        path.rename(root / f"{i}.png")
    (root / "shots/good").rmdir()
    (root / "shots").rmdir()
    evaluation = evaluated(root, tiny_detector)
    row, mean = evaluation.table.rows
    assert (row.counts.images_unknown, row.accumulator) == (4, "none")
    assert all(math.isnan(value) for value in row.metrics.values())
    assert mean.categories["image_auroc"] == 0
    evaluation.save(tmp_path / "run.json")


def test_scores_of_another_store_are_refused(scores: Scores, tmp_path: Path) -> None:
    other = extracted(manifest_of(write_folder(tmp_path / "parts", seed=8)), tmp_path / "a.zarr")
    with pytest.raises(SpgError, match="scored from another store"):
        evaluate_scores(scores, other, MetricParams())


def test_progress_counts_images(scores: Scores, tiny_store: FeatureStore) -> None:
    seen: list[tuple[int, int]] = []
    evaluate_scores(scores, tiny_store, MetricParams(), progress=lambda *state: seen.append(state))
    assert seen == [(8, 16), (16, 16)]


def test_a_calibration_adds_figures_at_its_thresholds_to_every_row(
    scores: Scores, tiny_store: FeatureStore, evaluation: Evaluation, tmp_path: Path
) -> None:
    image, pixel = float(scores.table["score"].median()), 0.5
    groups = {name: by_hand(image, pixel) for name in ("bolt", "nut")}
    made = calibration_of(groups, by_folder=True)
    found = evaluate_scores(scores, tiny_store, MetricParams(), calibration=made)
    row, table = found.table.categories[0], scores.table[scores.table["category"] == "bolt"]
    above, truth = table["score"] > image, table["label"] == 1
    assert row.metrics["image_precision"] == pytest.approx(truth[above].mean())
    assert row.metrics["image_recall"] == pytest.approx(above[truth].mean())
    assert row.metrics["image_fpr"] == pytest.approx(above[~truth].mean())
    maps, masks = scores.maps(np.arange(7)) > np.float32(pixel), tiny_store.masks(np.arange(7)) > 0
    assert row.metrics["pixel_recall"] == pytest.approx(maps[masks].mean())
    assert row.metrics["pixel_fpr"] == pytest.approx(maps[~masks].mean())
    assert (row.thresholds["image_threshold"], row.thresholds["pixel_threshold"]) == (image, pixel)
    assert found.table.mean.metrics["image_fpr"] == pytest.approx(
        np.mean([each.metrics["image_fpr"] for each in found.table.categories])
    )
    for name, value in evaluation.table.mean.metrics.items():
        assert found.table.mean.metrics[name] == value
    found.save(tmp_path / "run.json")
    assert read_metrics(tmp_path / "run.json").provenance.calibration == made.fingerprint
    assert read_metrics(tmp_path / "run.json").table == found.table
    shown = operating_table(found.table)
    assert shown
    assert shown.columns[:4] == (
        "Category",
        "Image threshold",
        "Pixel threshold",
        "Image precision",
    )
    assert "Image FPR" in text_table(found.table)
    assert operating_table(evaluation.table) is None


def test_a_mean_over_seeds_is_of_the_metrics_that_all_have(
    scores: Scores, tiny_store: FeatureStore, evaluation: Evaluation
) -> None:
    made = calibration_of({"": by_hand(0.0, None)})
    found = evaluate_scores(scores, tiny_store, MetricParams(), calibration=made).table
    assert math.isnan(found.mean.metrics["pixel_fpr"])
    other = replace(evaluation.table, context=replace(evaluation.table.context, seed=112))
    assert seeds_mean([found, other]).mean.metrics == evaluation.table.mean.metrics


def test_a_calibration_without_a_threshold_for_a_category_is_an_error(
    scores: Scores, tiny_store: FeatureStore
) -> None:
    made = calibration_of({"bolt": by_hand(0.0, 0.5)}, by_folder=True)
    with pytest.raises(SpgError, match="no threshold for images of the folder nut"):
        evaluate_scores(scores, tiny_store, MetricParams(), calibration=made)
