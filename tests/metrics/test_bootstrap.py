"""Bootstrap intervals: images are drawn, and a histogram stands for their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from spg_pipe.metrics.bootstrap import BINS, CategoryImages, intervals, pixel_histograms


def images(
    count: int, seed: int, gap: float, spread: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), maps (n, 16, 16) and masks: defects score higher by `gap` in the logit."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    masks = np.zeros((count, 16, 16), bool)
    masks[labels == 1, 4:8, 4:8] = True
    maps = 1 / (1 + np.exp(-spread * (rng.normal(size=masks.shape) + gap * masks)))
    return labels, maps.astype(np.float32), masks


def histograms(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = zip(maps, masks, strict=True)
    return pixel_histograms(pairs, float(maps.min()), float(maps.max()))


def category(count: int, seed: int, gap: float = 1.5) -> CategoryImages:
    labels, maps, masks = images(count, seed, gap)
    return CategoryImages(labels, maps.max(axis=(1, 2)), *histograms(maps, masks))


@pytest.mark.parametrize("spread", [0.02, 1.0, 8.0])
def test_histograms_hold_every_pixel_once_and_keep_the_metrics(spread: float) -> None:
    """However near to each other the scores lie."""
    _, maps, masks = images(20, 0, 1.5, spread)
    normal, anomalous = histograms(maps, masks)
    assert normal.shape == anomalous.shape == (20, BINS)
    assert normal.sum() + anomalous.sum() == maps.size
    assert (anomalous.sum(axis=1) == masks.sum(axis=(1, 2))).all()
    bins = (
        np.repeat(np.arange(BINS), normal.sum(axis=0)),
        np.repeat(np.arange(BINS), anomalous.sum(axis=0)),
    )
    labels = np.repeat([0, 1], [len(b) for b in bins])
    for metric in (roc_auc_score, average_precision_score):
        exact = metric(masks.ravel(), maps.ravel())
        assert metric(labels, np.concatenate(bins)) == pytest.approx(exact, abs=2e-3)


def test_an_interval_holds_the_metric_and_narrows_with_more_images() -> None:
    labels, maps, masks = images(40, 1, 1.5)
    found = intervals([category(40, 1)], rounds=200)
    scores = maps.max(axis=(1, 2))
    for name, value in (
        ("image_auroc", roc_auc_score(labels, scores)),
        ("pixel_auroc", roc_auc_score(masks.ravel(), maps.ravel())),
        ("pixel_ap", average_precision_score(masks.ravel(), maps.ravel())),
    ):
        assert found[name].low < value < found[name].high
    more = intervals([category(400, 2)], rounds=200)
    for name, wide in found.items():
        assert more[name].high - more[name].low < wide.high - wide.low


def test_a_draw_is_the_metric_of_the_images_that_were_drawn() -> None:
    """Written out: image by image, draw by draw."""
    given = [category(14, 6), category(600, 7)]
    rng, draws = np.random.default_rng(3), []
    for _ in range(4):
        values = []
        for one in given:
            parts = [np.flatnonzero(one.labels == label) for label in (0, 1)]
            rows = np.concatenate([rng.choice(part, len(part)) for part in parts])
            pixels = np.stack([one.normal[rows].sum(axis=0), one.anomalous[rows].sum(axis=0)])
            truth, score = np.indices(pixels.shape)
            pixel = (truth.ravel(), score.ravel(), pixels.ravel())
            values.append(
                (
                    roc_auc_score(one.labels[rows], one.scores[rows]),
                    roc_auc_score(pixel[0], pixel[1], sample_weight=pixel[2]),
                    average_precision_score(pixel[0], pixel[1], sample_weight=pixel[2]),
                )
            )
        draws.append(np.mean(values, axis=0))
    found = intervals(given, rounds=4, seed=3)
    expected = np.quantile(draws, [0.025, 0.975], axis=0).T
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-9)


def test_a_metric_that_no_category_has_is_nan() -> None:
    one = category(12, 4)
    anomalous = one._replace(labels=np.ones(12, int))
    found = intervals([anomalous], rounds=5)
    assert np.isnan(found["image_auroc"]).all()
    assert not np.isnan(found["pixel_auroc"]).any()
