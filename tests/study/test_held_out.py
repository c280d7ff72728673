"""Settings are judged on held-out parts of the auxiliary set, and on nothing else."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import extracted, manifest_of, write_folder

from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.guides.contrast import class_sums
from spg_pipe.recipe.params import BankParams, DecisionParams, MapWeights
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study import held_out, held_out_banks
from spg_pipe.study.held_out import (
    TOLERANCE,
    Candidate,
    best,
    held_out_parts,
    judge_candidates,
    known_mean,
    look_at_parts,
)
from spg_pipe.study.held_out_banks import judge_banks


@pytest.mark.parametrize(
    ("merits", "taken"),
    [
        ((0.8, 0.8 + TOLERANCE / 2, 0.7), 0),
        ((0.8, 0.8 + 2 * TOLERANCE, 0.7), 1),
        ((0.7, 0.9, 0.9 + TOLERANCE / 2), 1),
    ],
)
def test_the_first_is_kept_unless_another_is_clearly_better(
    merits: tuple[float, ...], taken: int
) -> None:
    assert best(np.array(merits)) == taken


def test_a_mean_is_of_what_is_defined_and_nothing_is_chosen_by_nothing() -> None:
    means = known_mean([[0.6, 0.9, math.nan], [math.nan, 0.7, math.nan]])
    np.testing.assert_allclose(means, [0.6, 0.8, math.nan])
    with pytest.raises(UnsuitableError, match="nothing can be chosen"):
        best(means)


def test_parts_are_categories_where_there_are_several(tiny_store: FeatureStore) -> None:
    parts = held_out_parts(tiny_store, class_sums(tiny_store))
    assert list(parts) == ["bolt", "nut"]
    assert (parts["bolt"] ^ parts["nut"]).all()


def test_one_category_is_parted_by_folds_or_kinds(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", ("bolt",), masked=6, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    labels = store.array("label")
    parts = held_out_parts(store, class_sums(store))
    assert [name.split()[0] for name in parts] == ["fold"] * 5
    held = np.stack(list(parts.values()))
    assert (held.sum(axis=0) == 1).all()  # every image, defective or not, once
    assert all((labels[rows] == 1).any() for rows in parts.values())


def test_an_image_does_not_see_itself(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part `bolt` is judged by guides, scales and weights without any image of `bolt`."""
    true, given = held_out.direction, []

    def direction(sums: object, layer: str, view: str, chosen: np.ndarray) -> torch.Tensor | None:
        given.append(chosen.copy())
        return true(sums, layer, view, chosen)

    fitted: list[np.ndarray] = []
    fit = held_out.fit_measured

    def fit_measured(*arguments: object, among: np.ndarray, **options: int) -> object:
        fitted.append(among.copy())
        return fit(*arguments, among=among, **options)

    monkeypatch.setattr(held_out, "direction", direction)
    monkeypatch.setattr(held_out, "fit_measured", fit_measured)
    judge_candidates(tiny_store, [Candidate(tiny_sae, 4, DecisionParams())])
    bolt = tiny_store.table["category"].to_numpy() == "bolt"
    assert {rows.tobytes() for rows in given} == {bolt.tobytes(), (~bolt).tobytes()}
    assert [rows.tobytes() for rows in fitted] == [(~bolt).tobytes(), bolt.tobytes()]


def test_candidates_are_judged_as_they_would_be_alone(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    none = DecisionParams(map=MapWeights(dissimilarity=0))
    candidates = [
        Candidate(tiny_sae, atoms, decision)
        for atoms in (2, 6)
        for decision in (DecisionParams(), none)
    ]
    together = judge_candidates(tiny_store, candidates)
    assert list(together) == ["bolt", "nut"]
    for number, candidate in enumerate(candidates):
        for part, figures in judge_candidates(tiny_store, [candidate]).items():
            np.testing.assert_allclose(together[part][number], figures[0], atol=1e-6)
    assert len(np.unique(together["bolt"], axis=0)) > 1


def test_too_few_images_to_hold_some_out_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "one", ("bolt",), masked=1, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    with pytest.raises(SpgError, match="too few to hold some out"):
        held_out_parts(store, class_sums(store))


def test_a_banks_normals_are_not_judged_and_its_settings_are_judged_as_alone(
    tiny_store: FeatureStore, tiny_sae: SaeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[set[int]] = []
    judged: list[set[int]] = []
    made = held_out_banks.MemoryBank.of_store

    def of_store(store: FeatureStore, rows: np.ndarray, *given: Any, **options: Any) -> Any:
        drawn.append(set(rows.tolist()))
        return made(store, rows, *given, **options)

    auroc = held_out.PartsSeen.image_auroc

    def image_auroc(shared: Any, rows: np.ndarray, scores: np.ndarray) -> float:
        judged.append(set(np.flatnonzero(rows).tolist()))
        return auroc(shared, rows, scores)

    monkeypatch.setattr(held_out_banks.MemoryBank, "of_store", of_store)
    monkeypatch.setattr(held_out.PartsSeen, "image_auroc", image_auroc)
    one = Candidate(tiny_sae, 6, DecisionParams())
    banks = [
        BankParams(neighbours=n, weight=w, top_share=t)
        for n in (1, 2)
        for w in (0.5, 4.0)
        for t in (0.01, 0.3)
    ]
    options: dict[str, Any] = {"normals": 2, "seed": 5}
    together = judge_banks(tiny_store, one, banks, **options)
    labels = tiny_store.array("label")
    assert len(drawn) == 4  # two categories, two numbers of neighbours
    for part, own in (("bolt", set(range(8))), ("nut", set(range(8, 16)))):
        bank = next(rows for rows in drawn if rows <= own)
        assert (labels[list(bank)] == 0).all(), part
        assert own - bank in judged
    assert all(rows <= set(range(8)) or rows <= set(range(8, 16)) for rows in judged)
    for number, params in enumerate(banks):
        for part, figures in judge_banks(tiny_store, one, [params], **options).items():
            np.testing.assert_array_equal(together[part][number], figures[0])
    assert len(np.unique(together["bolt"], axis=0)) > 2


def test_a_bank_without_weight_is_the_zero_shot_decision_on_the_same_images(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    """The guides' part of a fused score is made without the part, as in `judge_candidates`."""
    one = Candidate(tiny_sae, 6, DecisionParams())
    banks = [BankParams(weight=0), BankParams(weight=4)]
    judged = judge_banks(tiny_store, one, banks, normals=2, seed=5)
    shared = look_at_parts(tiny_store, [one], "cpu")
    assert list(judged) == ["bolt", "nut"]
    for part, (none, some) in judged.items():
        (category,) = shared.categories(part)
        ((rows, drawn),) = held_out_banks._targets(tiny_store, shared, part, 2, 5)
        assert sorted([*np.flatnonzero(rows), *drawn]) == np.flatnonzero(category).tolist()
        # The zero-shot way, on the same images, without what is made for banks.
        decision, which = shared.decide(one, part)
        odds = partial(shared.measured.log_odds, decision, which)
        scores = shared.image_scores(decision, which, rows)
        expected = (shared.image_auroc(rows, scores), *shared.pixel_metrics(rows, odds))
        assert tuple(none) == pytest.approx(expected)
        assert tuple(some) != tuple(none)


def test_a_copy_is_drawn_for_no_bank(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "parts", missing=0)
    for category in ("bolt", "nut"):
        for number in range(4):
            good = folder / category / "good"
            shutil.copy(good / "00.png", good / f"copy{number}.png")
    store = extracted(manifest_of(folder), tmp_path / "x.zarr")
    shared = look_at_parts(store, [Candidate(tiny_sae, 6, DecisionParams())], "cpu")
    for seed in range(4):
        for part in ("bolt", "nut"):
            ((_, drawn),) = held_out_banks._targets(store, shared, part, 4, seed)
            assert [Path(store.table["path"][row]).stem[:2] for row in drawn] in (
                ["00", "01", "02", "03"],
                ["01", "02", "03", "co"],
            )
        assert not list(held_out_banks._targets(store, shared, "bolt", 5, seed))


def test_too_few_normal_images_for_a_bank_are_refused(
    tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    one = Candidate(tiny_sae, 6, DecisionParams())
    with pytest.raises(UnsuitableError, match=r"more than 4 normal images.*fewer --normals"):
        judge_banks(tiny_store, one, [BankParams()], normals=4, seed=0)
