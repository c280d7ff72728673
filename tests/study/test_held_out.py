"""Settings are judged on held-out parts of the auxiliary set, and on nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import extracted, manifest_of, write_folder

from spg_pipe.detector.coarse import known_mean
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import class_sums
from spg_pipe.recipe.params import DecisionParams, ImageWeights, MapWeights
from spg_pipe.study import held_out
from spg_pipe.study.held_out import TOLERANCE, Candidate, best, held_out_parts, judge_candidates


@pytest.mark.parametrize(
    ("merits", "taken"),
    [
        ((0.8, 0.8 + TOLERANCE / 2, 0.7), 0),
        ((0.8, 0.8 + 2 * TOLERANCE, 0.7), 1),
        ((0.7, 0.9, 0.9 + TOLERANCE / 2), 1),
    ],
)
def test_the_first_is_kept_unless_another_is_clearly_better(merits, taken):
    assert best(np.array(merits)) == taken


def test_a_mean_is_of_what_is_defined_and_nothing_is_chosen_by_nothing():
    means = known_mean([[0.6, 0.9, math.nan], [math.nan, 0.7, math.nan]])
    np.testing.assert_allclose(means, [0.6, 0.8, math.nan])
    with pytest.raises(SpgError, match="nothing can be chosen"):
        best(means)


def test_parts_are_categories_where_there_are_several(tiny_store):
    parts = held_out_parts(tiny_store, class_sums(tiny_store))
    assert list(parts) == ["bolt", "nut"]
    assert (parts["bolt"] ^ parts["nut"]).all()


def test_one_category_is_parted_by_folds_or_kinds(tmp_path):
    folder = write_folder(tmp_path / "one", ("bolt",), masked=6, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    labels = store.array("label")
    parts = held_out_parts(store, class_sums(store))
    assert [name.split()[0] for name in parts] == ["fold"] * 5
    held = np.stack(list(parts.values()))
    assert (held.sum(axis=0) == 1).all()  # every image, defective or not, once
    assert all((labels[rows] == 1).any() for rows in parts.values())


def test_an_image_does_not_see_itself(tiny_store, tiny_sae, monkeypatch):
    """Part `bolt` is judged by guides, scales and weights without any image of `bolt`."""
    true, given = held_out.direction, []

    def direction(sums: object, layer: str, view: str, chosen: np.ndarray | None) -> object:
        given.append(None if chosen is None else chosen.tobytes())
        return true(sums, layer, view, chosen)

    fitted: list[np.ndarray] = []
    fit = held_out.fit_decision

    def fit_decision(*arguments: object, among: np.ndarray, **options: int) -> object:
        fitted.append(among.copy())
        return fit(*arguments, among=among, **options)

    monkeypatch.setattr(held_out, "direction", direction)
    monkeypatch.setattr(held_out, "fit_decision", fit_decision)
    judge_candidates(tiny_store, [Candidate(tiny_sae, 4, DecisionParams())], "cls")
    bolt = tiny_store.table["category"].to_numpy() == "bolt"
    # The span of the atoms alone, in which self-distances are taken, is that of all images.
    assert set(given) == {None, bolt.tobytes(), (~bolt).tobytes()}
    assert [rows.tobytes() for rows in fitted] == [(~bolt).tobytes(), bolt.tobytes()]


def test_candidates_are_judged_as_they_would_be_alone(tiny_store, tiny_sae):
    none = DecisionParams(map=MapWeights(self_distance=0))
    candidates = [
        Candidate(tiny_sae, atoms, decision)
        for atoms in (2, 6)
        for decision in (DecisionParams(), none)
    ]
    together = judge_candidates(tiny_store, candidates, "cls")
    assert list(together) == ["bolt", "nut"]
    for number, candidate in enumerate(candidates):
        for part, figures in judge_candidates(tiny_store, [candidate], "cls").items():
            np.testing.assert_allclose(together[part][number], figures[0], atol=1e-6)
    assert len(np.unique(together["bolt"], axis=0)) > 1


def test_too_few_images_to_hold_some_out_are_refused(tmp_path):
    folder = write_folder(tmp_path / "one", ("bolt",), masked=1, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "one.zarr")
    with pytest.raises(SpgError, match="too few to hold some out"):
        held_out_parts(store, class_sums(store))


def test_without_labels_of_both_classes_the_detection_feature_adds_nothing(tmp_path, tiny_sae):
    folder = write_folder(tmp_path / "parts", good=0, masked=3, missing=0)
    store = extracted(manifest_of(folder), tmp_path / "parts.zarr")
    whole, less = (
        Candidate(tiny_sae, 4, DecisionParams(image=ImageWeights(detection=weight)))
        for weight in (1, 0)
    )
    judged = judge_candidates(store, [whole, less], "cls")
    for figures in judged.values():
        np.testing.assert_array_equal(figures[0], figures[1])
        assert not np.isnan(figures[:, 1:]).any()
