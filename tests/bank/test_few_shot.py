"""Few-shot scores: a bank a category, added to a detector's decision or alone, and named so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TinyBackbone, additive_plan, bank_of_store, extracted, manifest_of, write_folder

from spg_pipe.bank.few_shot import (
    banks_of,
    known_images,
    normals_of,
    note_of_known,
    require_serving,
    says,
    score_few_shot,
    seen_of,
)
from spg_pipe.bank.normal_patches import KNOWN
from spg_pipe.decision.model import top_mean
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import BankOrigin
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.recipe.params import BankParams, MetricParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

PARAMS = BankParams(weight=0.5, top_share=0.1)


def store_of_normals(root: Path, *categories: str, copies: int = 0, **options: int) -> FeatureStore:
    given = {"good": 3, "masked": 0, "missing": 0, "seed": 7} | options
    folder = write_folder(root / "parts", categories, **given)
    for category in categories:
        good = folder / category / "good"
        for number in range(copies):
            shutil.copy(good / "00.png", good / f"copy{number}.png")
    return extracted(manifest_of(folder), root / "x.zarr")


@pytest.fixture(scope="module")
def normals(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Three normal images of each category, other ones than the store's."""
    return store_of_normals(tmp_path_factory.mktemp("normals"), "bolt", "nut")


@pytest.fixture(scope="module")
def detector(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Detector:
    return make_detector(tiny_store, additive_plan(tiny_sae))[0]


def test_an_image_is_judged_by_normal_images_of_its_own_category(tiny_store, normals, tmp_path):
    banks = banks_of([normals], tiny_store, PARAMS)
    scores = score_few_shot(None, banks, tiny_store, tmp_path / "s")
    names = tiny_store.table["category"].to_numpy()
    for category, own in (("bolt", [0, 1, 2]), ("nut", [3, 4, 5])):
        bank = bank_of_store(normals, np.array(own), PARAMS)
        rows = np.flatnonzero(names == category)
        tokens = {layer: image_tokens(tiny_store, layer, rows) for layer in tiny_store.layers}
        expected = bank.distances(tokens)
        np.testing.assert_allclose(scores.table["score"][rows], expected.top, atol=1e-5)
        for layer, values in scores.patches(rows).items():
            torch.testing.assert_close(values, expected.patches[layer], atol=1e-5, rtol=0)


def test_a_fused_score_is_the_zero_shot_one_and_the_banks_share(
    tiny_store, normals, detector, tmp_path
):
    banks = banks_of([normals], tiny_store, PARAMS)
    alone = score_few_shot(None, banks, tiny_store, tmp_path / "alone")
    fused = score_few_shot(detector, banks, tiny_store, tmp_path / "fused")
    guides = score_store(detector, tiny_store, tmp_path / "guides")
    on_normals = score_store(detector, normals, tmp_path / "normals")
    total = sum(term.weight for term in detector.decision.terms.values())
    images = np.arange(16)
    before, away = guides.patches(images), alone.patches(images)
    for category, own in (("bolt", [0, 1, 2]), ("nut", [3, 4, 5])):
        rows = np.flatnonzero(tiny_store.table["category"] == category)
        scores, tops = on_normals.table["score"].to_numpy()[own], banks.of[category].tops
        deviations = [  # one more image is assumed, an eighth of the weights, or 1, away
            np.sqrt((assumed**2 + values.var() * 3) / 3)
            for values, assumed in ((scores, total / 8), (tops, 1))
        ]
        share = 0.5 * deviations[0] / deviations[1] * alone.table["score"][rows]
        np.testing.assert_allclose(fused.table["share_bank"][rows], share, atol=1e-5)
        summed = guides.table["score"][rows] + share
        np.testing.assert_allclose(fused.table["score"][rows], summed, atol=1e-5)
        for layer, values in fused.patches(rows).items():
            level = on_normals.patches(np.array(own))[layer].numpy()
            top = top_mean(level, 0.1).mean() - level.mean()
            u, b = (before[layer][rows].numpy() - level.mean()) / top, away[layer][rows].numpy()
            expected = b + np.maximum(b, 0) * np.maximum(u, 0) ** 2 + u
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_scores_and_their_rows_say_what_was_seen(tiny_store, normals, detector, tmp_path):
    banks = banks_of([normals], tiny_store, PARAMS)
    seen = "few-shot: 3 normal images of each category of the target"
    expected = {
        "k-NN bank": (None, seen),
        "spg-plus + k-NN bank": (detector, f"labelled auxiliary set; {seen}"),
    }
    for name, (given, sees) in expected.items():
        scores = score_few_shot(given, banks, tiny_store, tmp_path / name)
        assert scores.record.bank == BankOrigin(params=PARAMS, normals=normals.fingerprint)
        context = evaluate_scores(scores, tiny_store, MetricParams()).table.context
        assert (context.method, context.supervision) == (name, sees)
    other = banks_of([normals], tiny_store, BankParams(weight=2))
    again = score_few_shot(detector, other, tiny_store, tmp_path / "other")
    assert again.record.fingerprint != scores.record.fingerprint


def test_how_many_images_were_seen_is_said_exactly() -> None:
    assert says([4]) == "few-shot: 4 normal images of the target"
    assert says([1, 1]) == "few-shot: 1 normal image of each category of the target"
    assert says([4, 4]) == "few-shot: 4 normal images of each category of the target"
    assert says([4, 7, 5]) == "few-shot: 4 to 7 normal images of each category of the target"


def test_copies_are_not_counted(tiny_store, tmp_path):
    copied = store_of_normals(tmp_path / "copied", "bolt", "nut", copies=2)
    banks = banks_of([copied], tiny_store, PARAMS)
    assert says(seen_of(banks.rows)) == "few-shot: 3 normal images of each category of the target"
    assert [own.copies for own in banks.rows.values()] == [2, 2]


def test_two_stores_of_one_category_are_refused_by_name(tiny_store, normals, tmp_path):
    other = store_of_normals(tmp_path, "nut", seed=9)
    message = rf"{normals.path} and {other.path} both have normal images of nut"
    with pytest.raises(SpgError, match=message):
        normals_of([normals, other], tiny_store)


def test_one_category_serves_another_name_and_several_need_their_own(tiny_store, tmp_path):
    washer = store_of_normals(tmp_path / "washer", "washer")
    one = extracted(manifest_of(write_folder(tmp_path / "b", ("bolt",))), tmp_path / "b.zarr")
    assert list(banks_of([washer], one, PARAMS).of) == ["bolt"]
    bolt = store_of_normals(tmp_path / "bolt", "bolt")
    with pytest.raises(SpgError, match=r"no normal images of nut; the normal images are of bolt"):
        banks_of([bolt], tiny_store, PARAMS)
    nut = store_of_normals(tmp_path / "nut", "nut")
    banks = banks_of([bolt, nut], tiny_store, PARAMS)
    assert list(banks.of) == ["bolt", "nut"]
    assert banks.origin.normals not in (bolt.fingerprint, nut.fingerprint)


def test_what_cannot_be_a_bank_of_this_target_is_refused(tiny_store, tmp_path):
    with pytest.raises(SpgError, match=r"has 8 anomalous images \(the first: bolt/dent/00\.png\)"):
        banks_of([tiny_store], tiny_store, PARAMS)
    folder = write_folder(tmp_path / "other", masked=0, missing=0)
    other = extracted(
        manifest_of(folder), tmp_path / "o.zarr", backbone=TinyBackbone(weights_sha256="1" * 64)
    )
    with pytest.raises(SpgError, match=r"another backbone than .*weights_sha256 differ"):
        banks_of([other], tiny_store, PARAMS)


def test_normal_images_of_another_white_are_refused_with_and_without_tokens(tiny_store, tmp_path):
    manifest = manifest_of(write_folder(tmp_path / "dim", masked=0, missing=0))
    dim = replace(manifest, white=4095)
    message = r"White is 4095 in the normal images of .*, and 65535 or .*NAME/train.* at 65535"
    with pytest.raises(UnsuitableError, match=message):
        require_serving(dim, tiny_store)
    with pytest.raises(UnsuitableError, match=message):
        normals_of([extracted(dim, tmp_path / "dim.zarr")], tiny_store)
    require_serving(manifest, tiny_store)


def test_the_published_rule_has_nothing_to_add_a_bank_to(
    tiny_store, normals, tiny_detector, tmp_path
):
    banks = banks_of([normals], tiny_store, PARAMS)
    with pytest.raises(SpgError, match=r"score\.rule is published.*--bank alone"):
        score_few_shot(tiny_detector, banks, tiny_store, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_scored_images_that_are_normals_of_the_bank_are_marked(tiny_store, tmp_path):
    folder = write_folder(tmp_path / "same", good=2, masked=0, missing=0)
    same = extracted(manifest_of(folder), tmp_path / "same.zarr")  # as the store's first two
    scores = score_few_shot(None, banks_of([same], tiny_store, PARAMS), tiny_store, tmp_path / "s")
    marked = scores.table["path"][scores.table[KNOWN]].tolist()
    assert marked == [f"{c}/good/{i:02d}.png" for c in ("bolt", "nut") for i in (0, 1)]
    found = known_images(normals_of([same], tiny_store), tiny_store)
    assert tiny_store.table["path"][found].tolist() == marked
    note = note_of_known(marked, 16, "so.")
    assert note.startswith("Note: 4 of the 16 images are among the normal ones (bolt/good/00.png,")
    assert note.endswith(" and 1 more): few-shot methods find their own images normal, so.")
