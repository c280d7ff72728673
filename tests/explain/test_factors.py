"""General and specific factors: contributions, generality, and guides of each category alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tiny import SHAPES, additive_plan, group_sums, plan_of

from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.explain.factors import GENERAL, generality, measure_factors
from spg_pipe.explain.group_sums import GroupSums
from spg_pipe.explain.groups import GROUPS, image_groups
from spg_pipe.explain.parts import DETECTION, MAP_GUIDES
from spg_pipe.guides.contrast import class_sums, direction, match
from spg_pipe.guides.model import TAU
from spg_pipe.recipe.params import ScoreParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

KEYS = ["component", "layer", "atom", "category"]


@pytest.fixture(scope="module")
def sums(tiny_store: FeatureStore) -> GroupSums:
    return group_sums(tiny_store)


@pytest.fixture(
    scope="module", params=["contrast", "contrast published", "trained", "trained published"]
)
def detector(
    request: pytest.FixtureRequest, tiny_store: FeatureStore, tiny_sae: SaeRun
) -> Detector:
    """Contrast guides and trained ones, with a decision and by the published rule."""
    plans = {
        "contrast": additive_plan(tiny_sae),
        "contrast published": additive_plan(tiny_sae, score=ScoreParams(rule="published")),
        "trained": plan_of(tiny_sae, score=ScoreParams()),
        "trained published": plan_of(tiny_sae),
    }
    return make_detector(tiny_store, plans[request.param])[0]


def mean_log_odds(detector: Detector, store: FeatureStore, component: str) -> dict[str, float]:
    """Category → mean of the guides' part over anomalous patches or images, less normal ones."""
    table, known = store.table, store.array("mask_state") != 2
    layers = detector.layers
    published = 1 / TAU if detector.contrast else 1.0  # the softmax's, see `probabilities`
    total = dict.fromkeys(table["category"].unique(), 0.0)
    for layer, guides in layers.items():
        patch = SHAPES[layer][0]
        side = guides.directions(as_cosines=not detector.contrast)
        masks = torch.from_numpy(store.masks(np.arange(len(store)))).double()[:, None]
        share = F.avg_pool2d(masks, patch).flatten(1).numpy()
        decision = None if detector.record.rule.rule == "published" else detector.decision
        if component == MAP_GUIDES:
            tokens = store.tokens(layer, np.arange(len(store))).astype(np.float64)
            line, gain = side["patches"][0], published
            if decision:
                gain = decision.map_weights.guides / decision.scales[layer]["guides"].deviation
            normal, anomalous = (share == 0) * known[:, None], share * known[:, None]
        else:
            tokens = store.cls(layer, np.arange(len(store))).astype(np.float64)[:, None]
            line, gain = side["cls"][0], published
            if decision:
                term = decision.terms["detection"]
                scale = decision.scales[layer]["image_detection"].deviation
                gain = term.weight / term.deviation / scale
            label = store.array("label")[:, None]
            normal, anomalous = label == 0, label == 1
        tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
        odds = gain * tokens @ line.double().numpy() / len(layers)
        for category in total:
            rows = (table["category"] == category).to_numpy()
            means = [
                (odds * weights)[rows].sum() / weights[rows].sum()
                for weights in (normal, anomalous)
            ]
            total[category] += means[1] - means[0]
    return total


@pytest.mark.parametrize("component", [MAP_GUIDES, DETECTION])
def test_contributions_add_up_to_the_gap_between_the_classes(
    detector: Detector,
    tiny_store: FeatureStore,
    tiny_sae: SaeRun,
    sums: GroupSums,
    component: str,
) -> None:
    table = measure_factors(detector, [sums], tiny_sae).table
    rows = table[table["component"] == component]
    found = rows.groupby("category")["contribution"].sum().to_dict()
    expected = mean_log_odds(detector, tiny_store, component)
    if not any(expected.values()):  # the fit gave this component the weight 0
        assert (component, found) == (DETECTION, {})
        return
    assert found.keys() == expected.keys()
    for category, gap in expected.items():
        assert found[category] == pytest.approx(gap, abs=1e-5)
    assert rows.groupby("category")["share"].agg(lambda s: s.abs().sum()).tolist() == pytest.approx(
        [1.0] * len(expected)
    )


def test_every_atom_of_a_component_has_a_row_for_each_category(
    detector: Detector, tiny_sae: SaeRun, sums: GroupSums
) -> None:
    factors = measure_factors(detector, [sums], tiny_sae)
    table, of_atoms = factors.table, factors.generality
    assert not table.duplicated(KEYS).any()
    assert table.notna().all(axis=None)
    for layer, guides in detector.layers.items():
        used = guides.atom_ids[guides.pairs["patches"].codes.any(dim=0)]
        rows = of_atoms[(of_atoms["component"] == MAP_GUIDES) & (of_atoms["layer"] == layer)]
        assert rows["atom"].tolist() == used.tolist()
    assert len(table[table["coefficient"] != 0]) == 2 * len(of_atoms)
    low, point, high = (table[f"contribution{end}"] for end in ("_low", "", "_high"))
    assert ((low <= high) & (low <= point + 1e-9) & (point <= high + 1e-9)).mean() > 0.9
    again = measure_factors(detector, [sums], tiny_sae)
    pd.testing.assert_frame_equal(again.table, table)
    pd.testing.assert_frame_equal(again.generality, of_atoms)


def test_guides_of_a_category_alone_are_contrast_guides_of_its_images(
    tiny_store: FeatureStore, tiny_sae: SaeRun, sums: GroupSums
) -> None:
    detector = make_detector(tiny_store, additive_plan(tiny_sae))[0]
    table = measure_factors(detector, [sums], tiny_sae).table
    whole = class_sums(tiny_store, "cls")
    for layer in SHAPES:
        atoms, dead = tiny_sae.layers[layer].atoms.detach(), tiny_sae.dead[layer]
        for number, category in enumerate(sums.categories):
            goal = direction(whole, layer, "patches", whole.categories == number)
            torch.testing.assert_close(sums.direction(layer, "patches", number), goal)
            pair = match(goal, atoms, dead, 6)
            of_layer = (table["component"] == MAP_GUIDES) & (table["layer"] == layer)
            rows = table[of_layer & (table["category"] == category)].set_index("atom")
            chosen = rows[rows["pursuit"] != 0]["pursuit"]
            expected = pd.Series(
                (pair.codes[1] - pair.codes[0]).double(), pair.atom_ids.numpy()
            ).rename("pursuit")
            pd.testing.assert_series_equal(
                chosen.sort_index(), expected, check_names=False, rtol=1e-4
            )
            guides = detector.layers[layer]
            own = guides.atom_ids[guides.pairs["patches"].codes.any(dim=0)]
            others = rows[~rows.index.isin(own.numpy())]
            assert (others[["coefficient", "contribution"]] == 0).all(axis=None)


def test_sums_do_not_depend_on_batches_and_take_the_same_memory_for_any_number_of_images(
    tiny_store: FeatureStore, sums: GroupSums
) -> None:
    again = group_sums(tiny_store, 1)
    for layer in SHAPES:
        for found, expected in zip(again.layers[layer], sums.layers[layer], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
            assert len(found) == len(sums.categories) * GROUPS


def test_the_images_of_a_label_are_dealt_over_the_groups(tiny_store: FeatureStore) -> None:
    groups = image_groups(tiny_store)
    for _, rows in tiny_store.table.groupby(["category", "label"]):
        assert len(set(groups[rows.index])) == len(rows)


def test_generality_is_the_evenness_of_what_an_atom_adds() -> None:
    even, single, half = [0.2, 0.2, 0.2, 0.2], [0.9, 0.0, 0.0, 0.0], [0.3, 0.3, -0.5, -0.1]
    against = [-0.1, -0.2, 0.0, -0.1]
    found = generality(np.array([even, single, half, against]).T)
    np.testing.assert_allclose(found, [1, 0, 0.5, np.nan])
    assert np.isnan(generality(np.ones((1, 3)))).all()


def test_an_atom_that_adds_everywhere_is_general_and_one_that_adds_once_is_specific(
    tiny_store: FeatureStore, tiny_sae: SaeRun, sums: GroupSums
) -> None:
    """Six categories whose anomalous patches differ from the normal ones by known atoms."""
    detector = make_detector(tiny_store, additive_plan(tiny_sae))[0]
    guides = detector.layers["1"]
    planted = replace(sums, categories=tuple("abcdef"), layers=dict(sums.layers))
    pair = guides.pairs["patches"]
    used = torch.nonzero(pair.codes.any(dim=0))[:, 0]
    coefficient = (pair.codes[1] - pair.codes[0])[used].double()
    # Rows that are at right angles to all atoms but one, in the direction that this one counts.
    alone = torch.linalg.pinv(guides.atoms[used].double()).t() * coefficient.sign()[:, None]
    for name, totals in sums.layers.items():
        dim = totals.patches.shape[-1]
        patches = torch.zeros(6, GROUPS, 2, dim, dtype=torch.float64)
        if name == "1":
            patches[:, :, 1] += alone[0]
            patches[2, :, 1] += alone[1]
        counts = torch.ones(6 * GROUPS, 2, dtype=torch.float64)
        patches = patches.flatten(0, 1)
        planted.layers[name] = totals._replace(
            patches=patches, patch_counts=counts, features=patches, feature_counts=0 * counts
        )
    only = replace(detector, layers={"1": guides})
    planted = replace(planted, layers={"1": planted.layers["1"]})
    factors = measure_factors(only, [planted], tiny_sae)
    rows = factors.generality[factors.generality["component"] == MAP_GUIDES].set_index("atom")
    general, specific = (int(guides.atom_ids[used[row]]) for row in (0, 1))
    assert rows.loc[general, "generality"] > GENERAL
    assert rows.loc[general, "factor"] == "general"
    assert rows.loc[specific, "generality"] == pytest.approx(0, abs=1e-6)
    assert rows.loc[specific, "factor"] == "specific"
    share = factors.shares.set_index("component").loc[MAP_GUIDES]
    assert 0.8 < share["general"] < 1
    assert share["categories"] == 6
    ends = share[["general_low", "general_high"]].to_numpy(float)
    np.testing.assert_allclose(ends, share["general"])  # all groups are alike
    # The gap of five categories is along one line, whatever atoms it is written with.
    assert share["general_random_low"] > 0.5
    assert share["general_random_low"] <= share["general_random"] <= share["general_random_high"]


def test_a_category_without_both_classes_is_left_out(
    tiny_store: FeatureStore, tiny_detector: Detector, tiny_sae: SaeRun
) -> None:
    sums = group_sums(tiny_store)
    for totals in sums.layers.values():
        totals.patch_counts[:GROUPS, 1] = 0
        totals.feature_counts[:, 0] = 0
    factors = measure_factors(tiny_detector, [sums], tiny_sae)
    assert set(factors.table["category"]) == {sums.categories[1]}
    assert set(factors.table["component"]) == {MAP_GUIDES}
    assert factors.generality.empty  # one category says nothing of generality
    assert factors.shares.empty
    for totals in sums.layers.values():
        totals.patch_counts[:] = 0
    assert measure_factors(tiny_detector, [sums], tiny_sae).table.empty


def test_several_stores_give_the_categories_of_all(
    tiny_detector: Detector, tiny_sae: SaeRun, sums: GroupSums
) -> None:
    other = replace(sums, dataset="other")
    alone, both = (
        measure_factors(tiny_detector, given, tiny_sae) for given in ([sums], [sums, other])
    )
    assert len(both.table) == 2 * len(alone.table)
    assert both.shares["categories"].tolist() == [4, 4]
    names = [f"{dataset}/{name}" for dataset in ("parts", "other") for name in ("bolt", "nut")]
    assert both.table["category"].unique().tolist() == sorted(names)
