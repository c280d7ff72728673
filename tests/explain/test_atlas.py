"""What an atlas says of a detector's atoms, on the small store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TinyBackbone, additive_plan, extracted, manifest_of

from spg_pipe.backbones.tiling import tiled
from spg_pipe.decision.model import Term
from spg_pipe.decision.rules import Additive
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.explain.activity import TOP
from spg_pipe.explain.atlas import Atlas, describe
from spg_pipe.explain.explanation import explain
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens


@pytest.fixture(scope="module")
def detector(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Detector:
    """With weights above 0, which the fit finds none of on the small store."""
    made = make_detector(tiny_store, additive_plan(tiny_sae))[0]
    rule = made.record.rule
    assert isinstance(rule, Additive)
    terms = {name: Term(weight=1, mean=0, deviation=1) for name in ("map_top", "detection")}
    changed = rule.model_copy(
        update={"decision": rule.decision.model_copy(update={"terms": terms})}
    )
    return replace(made, record=made.record.model_copy(update={"rule": changed}))


@pytest.fixture(scope="module")
def atlas(detector: Detector, tiny_store: FeatureStore, tiny_sae: SaeRun) -> Atlas:
    return describe(detector, tiny_sae, [tiny_sae], [tiny_store], every=True)


def whole(atlas: Atlas) -> pd.DataFrame:
    """The rows of all images together."""
    return atlas.atoms[atlas.atoms["category"].isna()]


def test_every_latent_has_a_row_for_all_images_and_for_each_category(atlas: Atlas) -> None:
    rows = atlas.atoms.groupby(["layer", "atom"]).size()
    assert len(rows) == 2 * 32
    assert set(rows) == {3}
    assert set(atlas.atoms["category"].dropna()) == {"bolt", "nut"}


def test_without_all_there_are_the_detectors_atoms_with_the_same_values(
    atlas: Atlas, detector: Detector, tiny_store: FeatureStore, tiny_sae: SaeRun
) -> None:
    own = describe(detector, tiny_sae, [tiny_sae], [tiny_store]).atoms
    expected = atlas.atoms[atlas.atoms["in_detector"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, expected)
    ids = {layer: set(guides.atom_ids.tolist()) for layer, guides in detector.layers.items()}
    assert {layer: set(of["atom"]) for layer, of in own.groupby("layer")} == ids


def test_coefficients_and_sides_are_those_of_the_guides(atlas: Atlas, detector: Detector) -> None:
    rows = whole(atlas).set_index(["layer", "atom"])
    for layer, guides in detector.layers.items():
        own = rows.loc[layer].loc[guides.atom_ids.tolist()]
        codes = guides.pairs["patches"].codes.double()
        np.testing.assert_allclose(own["coefficient"], codes[1] - codes[0])
        sides = np.sign(
            own["coefficient"].where(own["coefficient"] != 0, own["detection_coefficient"])
        )
        assert sides.map({1.0: "anomaly", -1.0: "normal"}).tolist() == own["side"].tolist()
    assert (rows.loc[~rows["in_detector"], "side"] == "").all()


def test_shares_are_those_of_the_explanations(
    atlas: Atlas, detector: Detector, tiny_store: FeatureStore
) -> None:
    every = np.arange(len(tiny_store))
    tokens = {layer: image_tokens(tiny_store, layer, every) for layer in tiny_store.layers}
    found = explain(detector, tokens)
    net = pd.DataFrame(found.contributions.T, index=pd.MultiIndex.from_tuples(found.atoms))
    size = net.groupby(level=[0, 1]).sum().abs()
    expected = (size / size.sum().clip(lower=1e-12)).mean(axis=1)
    rows = whole(atlas).set_index(["layer", "atom"])
    np.testing.assert_allclose(rows.loc[expected.index, "share"], expected, atol=1e-6)
    both, parts = net.groupby(level=[0, 1]).sum(), []
    labels, categories = tiny_store.array("label"), tiny_store.array("category")
    for name in ("bolt", "nut"):
        usual, others = ((categories == name) & (labels == label) for label in (0, 1))
        away = both.loc[:, others].sub(both.loc[:, usual].mean(axis=1), axis=0).abs()
        parts.append(away / away.sum())
    apart = rows.loc[expected.index, "share_apart"]
    np.testing.assert_allclose(apart, pd.concat(parts, axis=1).mean(axis=1), atol=1e-5)


def test_a_dictionary_finds_itself_in_another_seed(atlas: Atlas, tiny_sae: SaeRun) -> None:
    for layer, rows in whole(atlas).groupby("layer"):
        alive = ~tiny_sae.dead[layer].numpy()
        assert (rows["reproduced"][alive] == 1).all()
        assert np.allclose(rows["best_cosine"][alive], 1, atol=1e-5)
        assert rows[["x", "y"]].notna().all(axis=1).tolist() == alive.tolist()
        atoms = tiny_sae.layers[layer].atoms.detach()
        for row in rows[alive].itertuples():
            cosines = atoms[row.atom] @ atoms[torch.tensor(row.nearest)].t()
            np.testing.assert_allclose(row.nearest_cosine, cosines, atol=1e-5)
            assert row.atom not in row.nearest


def test_only_the_detectors_atoms_have_projections_and_strips_by_category(atlas: Atlas) -> None:
    others = atlas.atoms[~atlas.atoms["in_detector"]]
    assert others["projection_crops"].isna().all()
    assert others["projection_ap"].isna().all()
    assert others.loc[others["category"].notna(), "crops"].isna().all()
    own = atlas.atoms[atlas.atoms["coefficient"].fillna(0) != 0]
    assert own["projection_ap"].notna().all()
    assert own["projection_crops"].notna().all()
    named = pd.concat([atlas.atoms["crops"], atlas.atoms["projection_crops"]]).dropna()
    assert sorted(named) == sorted(atlas.strips)


def test_a_strip_shows_an_image_once(atlas: Atlas) -> None:
    for places in atlas.strips.values():
        assert len({place.image for place in places}) == len(places) <= TOP


def test_the_sae_is_judged_by_category(atlas: Atlas, tiny_sae: SaeRun) -> None:
    rows = atlas.categories
    assert rows.groupby("layer")["images"].agg(list).tolist() == [[16, 8, 8]] * 2
    for layer, of_layer in rows.groupby("layer"):
        k, alive = tiny_sae.layers[layer].k, 32
        assert (of_layer["usage_mean"] <= k / alive + 1e-9).all()
        assert (of_layer["r2"] <= 1).all()


def test_images_in_tiles_are_described_by_all_their_patches(
    detector: Detector, tiny_sae: SaeRun, tiny_images: Path, tmp_path: Path
) -> None:
    backbone = tiled(TinyBackbone(), [48])
    store = extracted(manifest_of(tiny_images), tmp_path / "tiles.zarr", backbone=backbone)
    found = describe(detector, tiny_sae, [], [store])
    patches = {
        key.layer: store.spec.layers[key.name].patches for key in store.spec.backbone.token_keys
    }
    rows = found.categories[found.categories["category"].isna()].set_index("layer")
    assert {layer: 16 * count for layer, count in patches.items()} == rows["patches"].to_dict()
    assert (found.atoms["seeds"] == 0).all()
