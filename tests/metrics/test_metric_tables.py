"""Rows, means, means over seeds, and their files."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from spg_pipe.errors import SpgError
from spg_pipe.metrics import (
    RowContext,
    accumulate,
    category_metrics,
    curve_rows,
    image_metrics,
    macro_mean,
    read_json,
    seeds_mean,
    write_csv,
    write_json,
)
from spg_pipe.metrics.tables import Row

CONTEXT = RowContext(dataset="mvtec", split="test", backbone="dinov3", seed=111, resolution="model")
LABELS = np.array([0, 0, 1, 1])
SCORES = np.array([0.1, 0.4, 0.35, 0.8])


def row(
    category: str = "bottle",
    labels: np.ndarray = LABELS,
    scores: np.ndarray = SCORES,
    *,
    context: RowContext = CONTEXT,
    noise: int = 0,
    anomalous: bool = True,
) -> Row:
    rng = np.random.default_rng(noise)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[2:6, 2:6] = anomalous
    anomaly_map = (0.5 * rng.random((16, 16)) + 0.3 * mask).astype(np.float32)
    pixel = accumulate(lambda: [(anomaly_map, mask)], "sort", context.protocol)
    return category_metrics(category, labels, scores, pixel, context=context)


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
    assert row(labels=labels, scores=scores)["images_unknown"] == 1


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


def test_a_row_names_its_protocol_and_where_it_comes_from() -> None:
    got = row()
    expected = {
        "dataset": "mvtec",
        "split": "test",
        "backbone": "dinov3",
        "seed": 111,
        "resolution": "model",
        "protocol": "exact",
        "accumulator": "sort",
        "category": "bottle",
        "images": 4,
        "regions": 1,
        "undefined": [],
    }
    assert expected.items() <= got.items()
    assert got["image_auroc"] == 0.75
    assert {"pixel_aupro_0.05", "pixel_aupro_0.3", "pixel_aupro_1.0"} <= set(got)


def test_a_row_of_protocol_spg_has_pro_and_no_aupro() -> None:
    got = row(context=replace(CONTEXT, protocol="spg"))
    assert {"pixel_pro_fast", "pixel_pro_slow"} <= set(got)
    assert not [name for name in got if "aupro" in name]


def test_pro_of_a_category_without_an_anomalous_pixel_is_undefined_and_not_in_the_mean() -> None:
    spg = replace(CONTEXT, protocol="spg")
    some, none = row("a", context=spg, noise=1), row("b", context=spg, anomalous=False)
    assert math.isnan(none["pixel_pro_fast"])
    assert {"pixel_pro_fast", "pixel_pro_slow", "pixel_auroc"} <= set(none["undefined"])
    mean = macro_mean([some, none])
    assert mean["pixel_pro_fast"] == some["pixel_pro_fast"] > 0
    assert mean["categories"]["pixel_pro_fast"] == 1


def test_protocols_do_not_mix_in_a_table() -> None:
    pixel = accumulate(lambda: [], "sort")
    spg = replace(CONTEXT, protocol="spg")
    with pytest.raises(SpgError, match="protocol exact in a table of protocol spg"):
        category_metrics("bottle", LABELS, SCORES, pixel, context=spg)
    with pytest.raises(SpgError, match="rows of different protocol: exact, spg"):
        macro_mean([row(), row(context=spg)])


def test_images_without_masks_take_part_in_image_metrics_only() -> None:
    got = category_metrics(
        "own", LABELS, SCORES, None, context=CONTEXT, images_without_mask=2, vanished_regions=0
    )
    assert got["image_auroc"] == 0.75
    assert math.isnan(got["pixel_auroc"])
    assert (got["images_without_mask"], got["pixels"], got["accumulator"]) == (2, 0, "none")


def test_the_mean_leaves_out_what_is_undefined_and_says_over_how_many() -> None:
    rows = [row("a", noise=1), row("b", noise=2), row("one", np.zeros(4, int), anomalous=False)]
    assert "image_auroc" in rows[2]["undefined"]
    assert "pixel_aupro_0.3" in rows[2]["undefined"]
    mean = macro_mean(rows)
    assert mean["image_auroc"] == 0.75
    assert mean["pixel_ap"] == pytest.approx((rows[0]["pixel_ap"] + rows[1]["pixel_ap"]) / 2)
    assert mean["categories"]["pixel_ap"] == 2
    assert mean["images"] == 12
    assert (mean["kind"], mean["seed"], mean["undefined"]) == ("mean", 111, [])


def test_the_mean_of_nothing_defined_is_nan_over_zero_categories() -> None:
    mean = macro_mean([row("one", np.zeros(4, int), anomalous=False)])
    assert math.isnan(mean["image_auroc"])
    assert mean["categories"]["image_auroc"] == 0
    assert "image_auroc" in mean["undefined"]
    with pytest.raises(SpgError, match="no rows"):
        macro_mean([])


def seed_table(seed: int) -> list[Row]:
    context = replace(CONTEXT, seed=seed)
    rows = [row(name, context=context, noise=seed + i) for i, name in enumerate("ab")]
    return [*rows, macro_mean(rows)]


def test_seeds_give_mean_and_sample_deviation() -> None:
    tables = [seed_table(seed) for seed in (111, 112, 113)]
    got = seeds_mean(tables)
    assert [r["category"] for r in got] == ["a", "b", "mean"]
    aps = [table[2]["pixel_ap"] for table in tables]
    assert got[2]["pixel_ap"] == pytest.approx(np.mean(aps))
    assert got[2]["pixel_ap_std"] == pytest.approx(np.std(aps, ddof=1))
    assert (got[2]["seed"], got[2]["seeds"]) == (None, [111, 112, 113])
    assert math.isnan(seeds_mean(tables[:1])[0]["pixel_ap_std"])


def test_seeds_of_different_tables_are_not_averaged() -> None:
    with pytest.raises(SpgError, match="same categories"):
        seeds_mean([seed_table(1), seed_table(2)[1:]])
    with pytest.raises(SpgError, match="different seeds"):
        seeds_mean([seed_table(1), seed_table(1)])
    other = [row(context=replace(CONTEXT, seed=2, backbone="dinov2"))]
    with pytest.raises(SpgError, match="different backbone: dinov2, dinov3"):
        seeds_mean([[row()], other])


def test_json_has_null_for_nan_and_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [row("a"), row("one", np.zeros(4, int), anomalous=False)]
    rows.append(macro_mean(rows))
    path = tmp_path / "metrics" / "run.json"
    write_json(path, rows)
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["categories"]["one"]["image_auroc"] is None
    assert document["mean"]["image_auroc"] == 0.75
    for got, expected in zip(read_json(path), rows, strict=True):
        np.testing.assert_equal(got, expected)
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_json_of_seeds_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = seeds_mean([seed_table(1)])
    write_json(tmp_path / "seeds.json", rows)
    for got, expected in zip(read_json(tmp_path / "seeds.json"), rows, strict=True):
        np.testing.assert_equal(got, expected)


@pytest.mark.parametrize("text", ["", "[]", '{"mean": {}}', '{"categories": {"a": 3}}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SpgError, match=r"x\.json: not a table of metrics"):
        read_json(tmp_path / "x.json")


def test_csv_has_a_line_for_each_row(tmp_path: Path) -> None:
    rows = [row("a"), row("one", np.zeros(4, int), anomalous=False)]
    rows.append(macro_mean(rows))
    write_csv(tmp_path / "run.csv", rows)
    with (tmp_path / "run.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["category"] for line in lines] == ["a", "one", "mean"]
    assert float(lines[0]["pixel_ap"]) == rows[0]["pixel_ap"]
    assert lines[1]["image_auroc"] == "nan"
    assert "image_auroc=1;" in lines[2]["categories"]
    assert all(line["protocol"] == "exact" for line in lines)


def test_curves_become_rows() -> None:
    mask = np.eye(8, dtype=np.uint8)
    rows = curve_rows("a", accumulate(lambda: [(mask.astype(np.float32), mask)], "sort"))
    assert {r["curve"] for r in rows} == {"roc", "pr", "pro"}
    assert rows[0] == {"category": "a", "curve": "roc", "x": 0.0, "y": 0.0}
