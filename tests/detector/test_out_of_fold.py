"""An image's own label, mask and tokens play no part in what is said of it out of fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import extracted, manifest_of, write_folder

from spg_pipe.datasets.manifest import LABEL_ANOMALOUS
from spg_pipe.decision.fit import Measured
from spg_pipe.detector import out_of_fold as module
from spg_pipe.detector.out_of_fold import judge_out_of_fold
from spg_pipe.guides.contrast import ClassSums
from spg_pipe.recipe.params import parse_params
from spg_pipe.store.reader import FeatureStore

PARAMS = parse_params(
    {"name": "x", "datasets": [], "auxiliaries": [], "directions": [], "guides": {"atoms": 6}},
    "the test's recipe",
)


def all_differ(store: FeatureStore) -> np.ndarray:
    return np.arange(len(store)).astype(str)


def test_copies_are_judged_without_each_other(tiny_store, tiny_sae):
    contents = all_differ(tiny_store)
    folds = judge_out_of_fold(tiny_store, tiny_sae, PARAMS, contents).folds
    first, copy = np.flatnonzero(folds == 0)[-1], np.flatnonzero(folds == 2)[0]
    contents[copy] = contents[first]
    judged = judge_out_of_fold(tiny_store, tiny_sae, PARAMS, contents)
    assert judged.folds[copy] == judged.folds[first]
    others = np.delete(np.arange(len(folds)), [first, copy])
    np.testing.assert_array_equal(judged.folds[others], folds[others])


def test_an_image_has_no_part_in_its_own_score(tiny_store, tiny_sae, monkeypatch):
    before = judge_out_of_fold(tiny_store, tiny_sae, PARAMS, all_differ(tiny_store))
    changed = before.folds == 1
    sums, measure = module.class_sums, module.measure

    def other_sums(*arguments: Any) -> ClassSums:
        found = sums(*arguments)
        rows = torch.from_numpy(changed)[:, None]
        layers = {
            name: replace(
                each,
                patches=torch.where(rows[..., None], each.patches.flip(0), each.patches),
                features=torch.where(rows, -each.features, each.features),
            )
            for name, each in found.layers.items()
        }
        return replace(found, layers=layers)

    def other_labels(*arguments: Any, **options: Any) -> Measured:
        found = measure(*arguments, **options)
        return replace(found, labels=np.where(changed, 1 - found.labels, found.labels))

    monkeypatch.setattr(module, "class_sums", other_sums)
    monkeypatch.setattr(module, "measure", other_labels)
    after = judge_out_of_fold(tiny_store, tiny_sae, PARAMS, all_differ(tiny_store))
    np.testing.assert_array_equal(after.scores[changed], before.scores[changed])
    assert (after.scores[~changed] != before.scores[~changed]).all()


def test_the_figures_are_those_of_scores_and_maps_of_all_folds(tiny_store, tiny_sae):
    judged = judge_out_of_fold(tiny_store, tiny_sae, PARAMS, all_differ(tiny_store))
    labels = tiny_store.array("label") == LABEL_ANOMALOUS
    categories = tiny_store.table["category"].to_numpy()
    parts = []
    for category in ("bolt", "nut"):
        rows = categories == category
        pairs = judged.scores[rows & labels][:, None] - judged.scores[rows & ~labels]
        parts.append((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert judged.image_auroc == pytest.approx(np.mean(parts))
    assert 0 < judged.pixel_ap <= 1


def test_a_fold_that_the_others_cannot_judge_has_no_score(tmp_path, tiny_sae):
    folder = write_folder(tmp_path / "one", ("bolt",), good=2, masked=1, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    record = tiny_sae.record.model_copy(update={"store": store.fingerprint})
    saes = replace(tiny_sae, record=record)
    judged = judge_out_of_fold(store, saes, PARAMS, all_differ(store))
    anomalous = store.array("label") == LABEL_ANOMALOUS
    assert np.isnan(judged.scores[anomalous]).all()  # the only defect
    assert np.isnan(judged.image_auroc)
    assert np.isnan(judged.pixel_ap)
