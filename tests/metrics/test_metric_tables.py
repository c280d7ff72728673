"""Rows, means, means over seeds, and their files."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from spg_pipe.errors import SpgError
from spg_pipe.metrics import (
    MetricsRow,
    MetricsTable,
    RowContext,
    accumulate,
    category_metrics,
    csv_text,
    flat_rows,
    image_metrics,
    seeds_mean,
    with_mean,
)

CONTEXT = RowContext(dataset="mvtec", split="test", backbone="dinov3", seed=111, resolution="model")
LABELS = np.array([0, 0, 1, 1])
SCORES = np.array([0.1, 0.4, 0.35, 0.8])


def row(
    category: str = "bottle",
    labels: np.ndarray = LABELS,
    scores: np.ndarray = SCORES,
    *,
    protocol: str = "exact",
    noise: int = 0,
    anomalous: bool = True,
) -> MetricsRow:
    rng = np.random.default_rng(noise)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[2:6, 2:6] = anomalous
    anomaly_map = (0.5 * rng.random((16, 16)) + 0.3 * mask).astype(np.float32)
    pixel = accumulate(lambda: [(anomaly_map, mask)], "sort", protocol)
    return category_metrics(category, labels, scores, pixel, protocol=protocol)


def one_class(category: str = "one") -> MetricsRow:
    return row(category, np.zeros(4, int), anomalous=False)


def test_image_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(7)
    labels, scores = rng.integers(0, 2, 50), np.round(rng.random(50), 1)
    got = image_metrics(labels, scores)
    assert got.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert got.ap == pytest.approx(average_precision_score(labels, scores))
    positive = scores >= got.f1_threshold
    f1 = 2 * (positive & (labels == 1)).sum() / (positive.sum() + labels.sum())
    assert got.f1_max == pytest.approx(f1)
    spg = image_metrics(labels, scores, "spg")
    np.testing.assert_array_equal(scores > spg.f1_threshold, positive)


def test_images_of_unknown_label_are_left_out_and_counted() -> None:
    labels, scores = np.array([0, 255, 0, 1, 1]), np.array([0.1, np.nan, 0.4, 0.35, 0.8])
    got = image_metrics(labels, scores)
    assert (got.normal, got.anomalous, got.unknown) == (2, 2, 1)
    assert got.auroc == image_metrics(LABELS, SCORES).auroc
    assert row(labels=labels, scores=scores).counts.images_unknown == 1


@pytest.mark.parametrize("label", [0, 1, 255])
def test_image_metrics_of_one_class_are_nan(label: int) -> None:
    got = image_metrics(np.full(3, label), np.array([0.1, 0.2, 0.3]))
    assert np.isnan([got.auroc, got.ap, got.f1_max, got.f1_threshold]).all()


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.5], r"\(2,\) labels and \(1,\) scores"),
        ([0, 7], [0.5, 0.6], "label 7"),
        ([0, 1], [0.5, np.nan], "1 of 2 image scores are NaN"),
    ],
)
def test_bad_image_scores_are_refused(labels: list, scores: list, message: str) -> None:
    with pytest.raises(SpgError, match=message):
        image_metrics(np.array(labels), np.array(scores))


def test_a_row_has_the_metrics_of_its_protocol_and_their_counts() -> None:
    exact, spg = row(), row(protocol="spg")
    common = ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max"]
    areas = ["pixel_aupro_0.05", "pixel_aupro_0.3", "pixel_aupro_1.0"]
    assert list(exact.metrics) == common + areas
    assert list(spg.metrics) == [*common, "pixel_pro_fast", "pixel_pro_slow"]
    assert exact.metrics["image_auroc"] == 0.75
    assert list(exact.thresholds) == ["image_f1_threshold", "pixel_f1_threshold"]
    assert (exact.accumulator, exact.undefined) == ("sort", [])
    assert (exact.counts.images, exact.counts.pixels, exact.counts.regions) == (4, 256, 1)


def test_pro_of_a_category_without_an_anomalous_pixel_is_undefined_and_not_in_the_mean() -> None:
    some = row("a", protocol="spg", noise=1)
    none = row("b", protocol="spg", anomalous=False)
    assert {"pixel_pro_fast", "pixel_pro_slow", "pixel_auroc"} <= set(none.undefined)
    mean = with_mean(CONTEXT, [some, none]).mean
    assert mean.metrics["pixel_pro_fast"] == some.metrics["pixel_pro_fast"] > 0
    assert mean.categories["pixel_pro_fast"] == 1


def test_protocols_do_not_mix_in_a_table() -> None:
    pixel = accumulate(lambda: [], "sort")
    with pytest.raises(SpgError, match="protocol exact in a table of protocol spg"):
        category_metrics("bottle", LABELS, SCORES, pixel, protocol="spg")
    with pytest.raises(SpgError, match=r"with one metrics\.protocol"):
        with_mean(CONTEXT, [row(), row(protocol="spg")])


def test_images_without_masks_take_part_in_image_metrics_only() -> None:
    got = category_metrics("own", LABELS, SCORES, None, images_without_mask=2)
    assert got.metrics["image_auroc"] == 0.75
    assert math.isnan(got.metrics["pixel_auroc"])
    assert (got.counts.images_without_mask, got.counts.pixels) == (2, 0)
    assert got.accumulator == "none"


def test_the_mean_leaves_out_what_is_undefined_and_says_over_how_many() -> None:
    a, b, one = row("a", noise=1), row("b", noise=2), one_class()
    assert {"image_auroc", "pixel_aupro_0.3"} <= set(one.undefined)
    table = with_mean(CONTEXT, [a, b, one])
    mean = table.mean
    assert table.rows == (a, b, one, mean)
    assert mean.metrics["image_auroc"] == 0.75
    expected = (a.metrics["pixel_ap"] + b.metrics["pixel_ap"]) / 2
    assert mean.metrics["pixel_ap"] == pytest.approx(expected)
    assert mean.categories["pixel_ap"] == 2
    assert (mean.counts.images, mean.counts.pixels, mean.undefined) == (12, 3 * 256, [])


def test_the_mean_of_nothing_defined_is_nan_over_zero_categories() -> None:
    mean = with_mean(CONTEXT, [one_class()]).mean
    assert math.isnan(mean.metrics["image_auroc"])
    assert mean.categories["image_auroc"] == 0
    assert "image_auroc" in mean.undefined
    with pytest.raises(SpgError, match="no rows"):
        with_mean(CONTEXT, [])


def seed_table(seed: int, categories: str = "ab", **context: str) -> MetricsTable:
    rows = [row(name, noise=seed + i) for i, name in enumerate(categories)]
    return with_mean(replace(CONTEXT, seed=seed, **context), rows)


def test_seeds_give_mean_and_sample_deviation() -> None:
    tables = [seed_table(seed) for seed in (111, 112, 113)]
    got = seeds_mean(tables)
    assert [r.category for r in got.rows] == ["a", "b", "mean"]
    aps = [table.mean.metrics["pixel_ap"] for table in tables]
    assert got.mean.metrics["pixel_ap"] == pytest.approx(np.mean(aps))
    assert got.mean.deviations["pixel_ap"] == pytest.approx(np.std(aps, ddof=1))
    assert (got.context.seed, got.seeds) == (None, (111, 112, 113))
    assert got.mean.categories["pixel_ap"] == 2
    assert math.isnan(seeds_mean(tables[:1]).mean.deviations["pixel_ap"])


def test_seeds_of_different_tables_are_not_averaged() -> None:
    with pytest.raises(SpgError, match="same categories"):
        seeds_mean([seed_table(1), seed_table(2, "b")])
    with pytest.raises(SpgError, match="different seeds"):
        seeds_mean([seed_table(1), seed_table(1)])
    with pytest.raises(SpgError, match="different backbone: dinov2, dinov3"):
        seeds_mean([seed_table(1), seed_table(2, backbone="dinov2")])
    with pytest.raises(SpgError, match="no tables"):
        seeds_mean([])


def test_csv_has_a_line_for_each_row_and_the_context_in_each() -> None:
    table = with_mean(CONTEXT, [row("a"), one_class()])
    lines = list(csv.DictReader(io.StringIO(csv_text(flat_rows(table)))))
    assert [line["category"] for line in lines] == ["a", "one", "mean"]
    assert [line["kind"] for line in lines] == ["category", "category", "mean"]
    assert float(lines[0]["pixel_ap"]) == table.rows[0].metrics["pixel_ap"]
    assert lines[1]["image_auroc"] == "nan"
    assert "image_auroc;image_ap" in lines[1]["undefined"]
    assert "image_auroc=1;" in lines[2]["categories"]
    assert (lines[2]["images"], lines[2]["image_f1_threshold"]) == ("8", "")
    for line in lines:
        assert (line["dataset"], line["seed"]) == ("mvtec", "111")
        assert (line["protocol"], line["supervision"]) == ("exact", "labelled auxiliary set")


def test_flat_rows_of_seeds_have_deviations_and_the_seeds() -> None:
    *_, mean = flat_rows(seeds_mean([seed_table(1), seed_table(2)]))
    assert (mean["seed"], mean["seeds"]) == (None, [1, 2])
    assert "pixel_ap_std" in mean
