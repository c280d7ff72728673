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

PARAMS = parse_params(
    {"name": "x", "datasets": [], "auxiliaries": [], "directions": [], "guides": {"atoms": 6}},
    "the test's recipe",
)


def test_an_image_has_no_part_in_its_own_score(tiny_store, tiny_sae, monkeypatch):
    before = judge_out_of_fold(tiny_store, tiny_sae, PARAMS)
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
    after = judge_out_of_fold(tiny_store, tiny_sae, PARAMS)
    np.testing.assert_array_equal(after.scores[changed], before.scores[changed])
    assert (after.scores[~changed] != before.scores[~changed]).all()


def test_the_figures_are_those_of_scores_and_maps_of_all_folds(tiny_store, tiny_sae):
    judged = judge_out_of_fold(tiny_store, tiny_sae, PARAMS)
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
    judged = judge_out_of_fold(store, replace(tiny_sae, record=record), PARAMS)
    anomalous = store.array("label") == LABEL_ANOMALOUS
    assert np.isnan(judged.scores[anomalous]).all()  # the only defect
    assert np.isnan(judged.image_auroc)
    assert np.isnan(judged.pixel_ap)
