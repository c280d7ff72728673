"""The claims of an audit, one by one: what is planted is found, and controls are what they say."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import additive_plan

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.model import coarse_maps
from spg_pipe.decision.rules import Published
from spg_pipe.detector.coarse import coarse_masks, image_auroc, pixel_figures
from spg_pipe.detector.judge import judge
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.explain.codes import Active
from spg_pipe.guides.contrast import class_sums, direction, match
from spg_pipe.report.examples import weighted_precision
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens
from spg_pipe.study import audit_intervention as painting
from spg_pipe.study.audit_case import matched
from spg_pipe.study.audit_dictionaries import AXES, COMPONENTS, DICTIONARIES, OWN, dictionary
from spg_pipe.study.audit_faithfulness import ablations, detector_parts, doubling
from spg_pipe.study.audit_judging import judge_directions
from spg_pipe.study.audit_latents import AUDITED, GROUPS, NULL, Sample, audited, count, propose
from spg_pipe.study.audit_stability import largest_difference
from spg_pipe.study.audit_tables import Row, means


@pytest.fixture(scope="module")
def contrast(tiny_store: FeatureStore, tiny_sae: SaeRun) -> Detector:
    return make_detector(tiny_store, additive_plan(tiny_sae))[0]


def test_dictionaries_have_unit_rows_and_the_saes_own_stays_as_it_is(tiny_store, tiny_sae):
    made = {name: dictionary(name, tiny_store, tiny_sae, 1) for name in DICTIONARIES}
    assert made[OWN] is tiny_sae
    for name, saes in made.items():
        for layer, sae in saes.layers.items():
            lengths = sae.atoms.norm(dim=1)
            assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5), name
            if name != OWN:
                assert torch.equal(sae.encoder, sae.dictionary)
                assert not saes.dead[layer].any()
    for name in (COMPONENTS, AXES):
        atoms = made[name].layers["1"].atoms
        assert torch.allclose(atoms[:12] @ atoms[:12].t(), torch.eye(12), atol=1e-5)
    for name in DICTIONARIES:
        assert dictionary(name, tiny_store, tiny_sae, 1).digest() == made[name].digest()


def test_atoms_that_are_kept_and_removed_add_up(contrast):
    parts = detector_parts(contrast)
    gaps = {place: rows.sum(0) for place, rows in parts.items()}
    by_n: dict[int, dict[str, Any]] = {}
    for variant in ablations(OWN, parts, gaps, draws=1):
        by_n.setdefault(variant.n, {})[variant.what] = variant.directions
    assert list(by_n) == doubling(max(map(len, parts.values())))
    *some, whole = by_n.values()
    for each in some:
        for place in parts:
            total = each["kept"][place] + each["removed"][place]
            assert torch.allclose(total, whole["kept"][place], atol=1e-6)
            assert not torch.allclose(each["removed at random"][place], whole["kept"][place])


def test_one_pursuit_gives_what_each_number_of_atoms_gives_alone(tiny_store, tiny_sae):
    sums = class_sums(tiny_store)
    for layer, sae in tiny_sae.layers.items():
        goal, dead, numbers = direction(sums, layer, "patches"), tiny_sae.dead[layer], [1, 2, 5, 99]
        found = matched(goal, tiny_sae, layer, numbers)
        for number, (atoms, parts) in zip(numbers, found, strict=True):
            fresh = match(goal, sae.atoms.detach(), dead, number)
            signed = fresh.codes[1] - fresh.codes[0]
            assert torch.equal(atoms, fresh.atom_ids)
            assert torch.equal(parts, signed[:, None] * sae.atoms.detach()[atoms])
    nothing = matched(torch.zeros_like(goal), tiny_sae, layer, [1, 4])
    assert [len(each.atoms) for each in nothing] == [0, 0]


def test_a_trained_detectors_own_directions_give_its_own_figures(tiny_detector, tiny_store):
    images = np.arange(len(tiny_store))
    tokens = {layer: image_tokens(tiny_store, layer, images) for layer in tiny_store.layers}
    seen, grids = tiny_store.spec.backbone, {n: s.grid for n, s in tiny_store.spec.layers.items()}
    patches = judge(tiny_detector, tokens, grids, seen, Published(image_score="max")).patches
    maps = coarse_maps(patches, tiny_store.image_size)
    categories = np.unique(tiny_store.array("category").astype(object), return_inverse=True)[1]
    labels, masks = tiny_store.array("label").astype(int), coarse_masks(tiny_store)
    expected = [
        image_auroc(labels, categories, maps.max(axis=(1, 2))),
        *pixel_figures(lambda image: maps[image], images, categories, masks)[:2],
    ]
    own = {place: rows.sum(0) for place, rows in detector_parts(tiny_detector).items()}
    less = {place: torch.zeros_like(row) for place, row in own.items()}
    normal = {layer: torch.ones(len(row)) for (layer, _), row in own.items()}
    found = judge_directions(tiny_store, [own, less], tiny_detector, None, normal)
    assert found[0] == pytest.approx(expected, abs=2e-3)
    assert found[1, :2] == pytest.approx([0.5, 0.5])  # a constant: what it gives at `normal`


def test_a_removed_atom_takes_its_stated_share_from_the_score(contrast, tiny_store):
    assert largest_difference(contrast, tiny_store) < 1e-5


@pytest.fixture(scope="module")
def planted(tiny_store: FeatureStore) -> tuple[Sample, Any]:
    """A code whose latent 3 is on where masks are, 5 where moved masks are, others by chance."""
    sample = Sample.of(tiny_store, 0)
    shares = sample.defect_shares["1"]
    moved = shares[torch.from_numpy(sample.moved)]
    patches = shares.shape[1]
    every = [
        sample.store.tokens("1", sample.images[[n]]).reshape(-1, 12) for n in range(len(shares))
    ]
    first = {tokens[0].tobytes(): number for number, tokens in enumerate(every)}

    def code(tokens: torch.Tensor) -> Active:
        rows = [first[t.numpy().astype(every[0].dtype).tobytes()] for t in tokens[::patches]]
        dense = torch.rand(len(tokens), 8, generator=torch.Generator().manual_seed(rows[0]))
        dense[:, 3] = shares[rows].flatten()
        dense[:, 5] = moved[rows].flatten()
        token, latent = torch.nonzero(dense > 0, as_tuple=True)
        return Active(token, latent, dense[token, latent])

    return sample, code


def test_the_latent_that_knows_the_masks_is_proposed_and_holds_up(planted):
    sample, code = planted
    counted = [count(sample, "1", code, 8)]
    assert counted[0].patches[:, 0].sum() == len(sample.images) * 16
    half = np.arange(GROUPS) % 2
    for masks, best in ((AUDITED, 3), (NULL, 5)):
        proposed = propose(counted, masks, half)
        assert proposed.latents[0] == best
        found = audited(counted, masks, proposed, np.flatnonzero(half == 0))
        assert found[0, 0] > found[0, 1:].max() + 0.1
        assert np.nanmin(found[1:, 0]) <= found[0, 0] <= np.nanmax(found[1:, 0])


def test_masks_move_within_their_category_and_images_without_one_teach_nothing(tiny_store):
    sample = Sample.of(tiny_store, 0)
    categories = tiny_store.array("category")[sample.images]
    assert (categories[sample.moved] == categories).all()
    assert sorted(sample.moved) == list(range(len(sample.images)))
    assert not (tiny_store.array("mask_state")[sample.images] == MaskState.MISSING).any()


def test_copies_of_an_image_are_in_one_half(tiny_store):
    paths = tiny_store.array("path").tolist()
    store = copy(tiny_store)
    store.spec = store.spec.model_copy(update={"sources": dict.fromkeys(paths[::2], "a source")})
    sample = Sample.of(store, 0)
    of_source = np.isin([paths[row] for row in sample.images], paths[::2])
    assert len(set(sample.groups[of_source])) == 1 < len(set(sample.groups))


def test_moved_masks_have_their_own_base_rate(planted):
    sample, code = planted
    counted = count(sample, "1", code, 8)
    every = np.arange(GROUPS)
    assert counted.base_rate(every, AUDITED) == pytest.approx(counted.base_rate(every, NULL))
    moved = sample.defect_shares["1"][torch.from_numpy(sample.moved)].mean(dim=1).numpy()
    of_half = moved[sample.groups % 2 == 0].mean()
    assert counted.base_rate(every[::2], NULL) == pytest.approx(of_half)


def test_precision_of_many_columns_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 20, (400, 6), generator=generator).float()
    share = torch.rand(400, generator=generator) * (torch.rand(400, generator=generator) > 0.7)
    each = [weighted_precision(column, share.numpy()) for column in values.t().numpy()]
    assert painting._mean_precision(values, share) == pytest.approx(np.mean(each), rel=1e-6)


def test_what_changes_inside_alone_has_a_large_ratio_and_its_stated_side():
    share = torch.tensor([1.0, 0.5, 0, 0])
    size = torch.tensor([[4.0], [4], [1], [1]])
    assert painting._ratio(size, share) == pytest.approx(4)
    assert painting._toward(size, share) == 1
    assert painting._toward(-size, share) == 0


def test_photographs_that_are_gone_give_no_pairs(tiny_store, monkeypatch, tmp_path):
    dataset = SimpleNamespace(root=tmp_path)
    monkeypatch.setattr(painting, "find_dataset", lambda params, name: dataset)
    run: Any = SimpleNamespace(params=None)
    backbone: Any = replace
    assert painting.painted_pairs(run, "parts", tiny_store, backbone, 0) == {}


def test_guides_with_fewer_atoms_count_with_all_of_them_where_others_have_more():
    def row(aux: str, n: int, value: float, variant: str = "kept") -> Row:
        return Row("trained guides", aux, "t", 1, OWN, variant, n, "pixel_auroc", value)

    kept = [row("a", 1, 0.2), row("a", 3, 0.4), row("b", 1, 0.6), row("b", 2, 0.7), row("b", 5, 1)]
    removed = [
        row("a", 1, 0.1, "removed"),
        row("b", 1, 0.3, "removed"),
        row("b", 2, 0.2, "removed"),
    ]
    found = means(pd.DataFrame([*kept, *removed]), ("dictionary", "variant"), ("n",))
    assert found.loc[(OWN, "kept"), 5] == pytest.approx(0.7)
    assert found.loc[(OWN, "kept"), 1] == pytest.approx(0.4)
    assert found.loc[(OWN, "removed"), 1] == pytest.approx(0.2)
    assert np.isnan(found.loc[(OWN, "removed"), 2])
