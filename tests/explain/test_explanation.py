"""A decision taken apart adds up: both kinds of guides, both rules, layers, tiles, a bank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPEC, TinyBackbone, additive_plan, decided, plan_of, weighted

from spg_pipe.backbones.tiling import tiled
from spg_pipe.bank.fusion import Footing, judge_fused
from spg_pipe.bank.memory import Distances
from spg_pipe.decision.components import Sides, components
from spg_pipe.decision.kept import Kept
from spg_pipe.decision.model import Scale, coarse_maps, top_weights
from spg_pipe.decision.rules import Published
from spg_pipe.detector.judge import judge
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.explain.explanation import MAP_SELF_DISTANCE, Explanation, explain
from spg_pipe.explain.parts import DETECTION, MAP_GUIDES
from spg_pipe.recipe.params import ImageScore, MapWeights
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

GRIDS = {"1": (4, 4), "2": (2, 2)}
WIDTHS = {"1": 12, "2": 8}
IMAGE_SCORES: tuple[ImageScore, ...] = ("max", "cls", "top_mean", "log_mean_exp", "mix")


@pytest.fixture(scope="session")
def detectors(tiny_store: FeatureStore, tiny_sae: SaeRun) -> dict[str, Detector]:
    """A detector of each kind of guides, with an additive decision."""
    trained = plan_of(tiny_sae).guides
    return {
        "contrast": weighted(make_detector(tiny_store, additive_plan(tiny_sae))[0]),
        "trained": weighted(make_detector(tiny_store, additive_plan(tiny_sae, guides=trained))[0]),
    }


@pytest.fixture(params=["contrast", "trained"])
def detector(request: pytest.FixtureRequest, detectors: dict[str, Detector]) -> Detector:
    return detectors[request.param]


def random_tokens(seed: int, images: int = 3, grids: dict[str, tuple[int, int]] = GRIDS):
    """Layer → (images, 1 + h·w, D) tokens of any length."""
    generator = torch.Generator().manual_seed(seed)
    tokens = {}
    for name, (rows, columns) in grids.items():
        shape = (images, 1 + rows * columns, WIDTHS[name.partition("@")[0]])
        tokens[name] = torch.randn(shape, generator=generator) * 10 ** (seed % 5 - 2)
    return tokens


def require_sums(explanation: Explanation) -> None:
    """Score = bias + Σ components; component = offset + Σ contributions."""
    total = explanation.bias + sum(explanation.components.values())
    np.testing.assert_allclose(total, explanation.scores, rtol=0, atol=1e-5)
    for name, offset in explanation.offsets.items():
        rows = [number for number, row in enumerate(explanation.atoms) if row.component == name]
        value = offset + explanation.contributions[:, rows].sum(axis=1)
        np.testing.assert_allclose(value, explanation.components[name], rtol=0, atol=1e-5)

    averages = explanation.contributions - explanation.excess
    held = [row.component == MAP_GUIDES for row in explanation.atoms]
    assert (np.isfinite(averages) == np.array(held)).all()


def require_maps(explanation: Explanation, name: str, expected: torch.Tensor) -> None:
    """An offset and the atoms' maps add up to the guides' part of the map (B, h, w)."""
    atoms = explanation.detector.layers[name.partition("@")[0]].atom_ids.tolist()
    for image, values in enumerate(expected.double().numpy()):
        maps = [explanation.atom_map(image, name, atom) for atom in atoms]
        total = explanation.fields[name].offset + np.sum(maps, axis=0)
        np.testing.assert_allclose(total, values, rtol=0, atol=1e-5)
        np.testing.assert_allclose(explanation.guides_map(image, name), values, rtol=0, atol=1e-5)


def guides_odds(detector: Detector, name: str, batch: torch.Tensor, grid: tuple[int, int]):
    """The guides' part of a map's log odds (B, h, w), as the decision computes it."""
    guides, decision = detector.layers[name.partition("@")[0]], detector.decision
    sides = Sides(guides.directions(as_cosines=not detector.contrast), guides.basis)
    alone = MapWeights(guides=decision.map_weights.guides, self_distance=0)
    only = decision.model_copy(update={"map_weights": alone})
    return only.log_odds(name.partition("@")[0], components(batch, sides, grid)).unflatten(1, grid)


@given(seed=st.integers(0, 10**6))
def test_random_tokens_add_up(detectors: dict[str, Detector], seed: int) -> None:
    for detector in detectors.values():
        tokens = random_tokens(seed)
        explanation = explain(detector, tokens)
        require_sums(explanation)
        for name, batch in tokens.items():
            require_maps(explanation, name, guides_odds(detector, name, batch, GRIDS[name]))


def test_real_tokens_add_up(detector: Detector, tiny_store: FeatureStore) -> None:
    rows = np.arange(len(tiny_store))
    tokens = {layer: image_tokens(tiny_store, layer, rows) for layer in tiny_store.layers}
    explanation = explain(detector, tokens)
    require_sums(explanation)
    assert set(explanation.components) == {
        MAP_GUIDES,
        MAP_SELF_DISTANCE,
        DETECTION,
        "self_distance",
    }


def test_the_parts_of_the_map_are_what_they_are_called(detector: Detector) -> None:
    """Each is computed here by itself, from the patches' components at the pixels that count."""
    tokens, decision = random_tokens(5), detector.decision
    judged = judge(detector, tokens, GRIDS, SPEC, detector.record.rule)
    pixels = top_weights(coarse_maps(judged.patches, 32), decision.top_share)
    explanation = explain(detector, tokens)
    guides = {
        name: guides_odds(detector, name, batch, GRIDS[name]) for name, batch in tokens.items()
    }
    rest = {name: judged.patches[name] - odds for name, odds in guides.items()}
    term = decision.terms["map_top"]
    for name, grids, mean in ((MAP_GUIDES, guides, term.mean), (MAP_SELF_DISTANCE, rest, 0.0)):
        value = (pixels * coarse_maps(grids, 32)).sum(axis=(1, 2))
        expected = term.weight / term.deviation * (value - mean)
        np.testing.assert_allclose(explanation.components[name], expected, rtol=0, atol=1e-5)


def test_without_an_atom_the_score_is_less_by_its_contribution(detectors) -> None:
    """Its coefficient is taken from the guides; the pixels that count are held."""
    detector, tokens = detectors["contrast"], random_tokens(2)
    explanation = explain(detector, tokens)
    judged = judge(detector, tokens, GRIDS, SPEC, detector.record.rule)
    for number in explanation.strongest(0)[:4]:
        row = explanation.atoms[number]
        less = without(detector, row.layer, row.atom, row.component)
        again = judge(less, tokens, GRIDS, SPEC, less.record.rule)
        if row.component == DETECTION:
            drop = judged.columns["score"] - again.columns["score"]
        else:
            decision = detector.decision
            term, size = decision.terms["map_top"], SPEC.preprocess.size
            pixels = top_weights(coarse_maps(judged.patches, size), decision.top_share)
            maps = coarse_maps(judged.patches, size) - coarse_maps(again.patches, size)
            drop = term.weight / term.deviation * (pixels * maps).sum(axis=(1, 2))
        np.testing.assert_allclose(drop, explanation.contributions[:, number], rtol=0, atol=1e-5)


def without(detector: Detector, layer: str, atom: int, component: str) -> Detector:
    """The detector with one atom less in the guides of a component; the basis is kept."""
    guides = detector.layers[layer]
    view = "patches" if component == MAP_GUIDES else detector.record.detection
    pair = guides.pairs[view]
    codes = pair.codes.clone()
    codes[:, guides.atom_ids == atom] = 0
    normal, anomaly = codes @ guides.atoms
    pairs = {**guides.pairs, view: pair._replace(normal=normal, anomaly=anomaly, codes=codes)}
    return replace(detector, layers={**detector.layers, layer: replace(guides, pairs=pairs)})


@pytest.mark.parametrize("image_score", IMAGE_SCORES)
def test_the_published_rule_adds_up(detector: Detector, image_score: ImageScore) -> None:
    rule = Published(image_score=image_score)
    for seed in range(5):
        tokens = random_tokens(seed)
        explanation = explain(detector, tokens, rule=rule)
        require_sums(explanation)
        assert explanation.bias == 0
        patches = judge(detector, tokens, GRIDS, SPEC, rule).patches
        for name, probabilities in patches.items():
            require_maps(explanation, name, probabilities)


def test_tiles_of_several_sides_add_up(detector: Detector) -> None:
    spec = tiled(TinyBackbone(), [32, 64]).spec
    grids = {"1@32": (4, 4), "2@32": (2, 2), "1@64": (8, 8), "2@64": (4, 4)}
    tokens = random_tokens(7, images=6, grids=grids)
    judged = judge(detector, tokens, grids, spec, detector.record.rule)
    assert judged.tiles is not None
    assert len(set(judged.tiles.tolist())) > 1
    explanation = explain(detector, tokens, grids, spec, judged=judged)
    require_sums(explanation)
    for name, batch in tokens.items():
        require_maps(explanation, name, guides_odds(detector, name, batch, grids[name]))
    published = Published(image_score="mix")
    require_sums(explain(detector, tokens, grids, spec, published))


def test_the_excess_is_over_the_mean_of_the_image(detector: Detector) -> None:
    """An image of equal patches has none."""
    tokens = {name: batch[:, 1:2].expand_as(batch) for name, batch in random_tokens(3).items()}
    explanation = explain(detector, tokens)
    held = np.isfinite(explanation.excess)
    assert np.abs(explanation.excess[held]).max() < 1e-5
    tokens = random_tokens(3)
    spread = explain(decided(detector, top_share=1.0), tokens)
    assert np.abs(spread.excess[np.isfinite(spread.excess)]).max() < 1e-5


def test_a_bank_is_a_component_of_its_own(detector: Detector) -> None:
    tokens = random_tokens(4)
    patches = {name: torch.rand(3, *grid) for name, grid in GRIDS.items()}
    distances = Distances(patches, np.array([0.5, 2.0, -1.0]), np.zeros(3, bool))
    footing = Footing({name: Scale(0.2, 1.5) for name in GRIDS}, weight=0.8)
    judged = judge_fused(detector, distances, tokens, SPEC, [footing] * 3)
    explanation = explain(detector, tokens, judged=judged)
    require_sums(explanation)
    np.testing.assert_allclose(explanation.components["bank"], 0.8 * distances.top)
    for name, batch in tokens.items():
        require_maps(explanation, name, guides_odds(detector, name, batch, GRIDS[name]))


@pytest.mark.parametrize("layer", ["1", "2"])
def test_one_layer_adds_up(tiny_sae: SaeRun, detectors: dict[str, Detector], layer: str) -> None:
    detector = detectors["contrast"]
    backbone = detector.record.backbone.model_copy(update={"layers": (layer,)})
    record = detector.record.model_copy(update={"backbone": backbone})
    alone = replace(detector, layers={layer: detector.layers[layer]}, record=record)
    tokens = {layer: random_tokens(3)[layer]}
    explanation = explain(alone, tokens)
    require_sums(explanation)
    assert {row.layer for row in explanation.atoms} == {layer}


def test_what_is_switched_off_is_not_there(detectors: dict[str, Detector]) -> None:
    detector, tokens = detectors["contrast"], random_tokens(1)
    for weights in (MapWeights(guides=0, self_distance=1), MapWeights(guides=1, self_distance=0)):
        explanation = explain(decided(detector, map_weights=weights), tokens)
        require_sums(explanation)
        held = {MAP_GUIDES, MAP_SELF_DISTANCE} & set(explanation.components)
        assert held == {MAP_GUIDES if weights.guides else MAP_SELF_DISTANCE}
    terms = {"self_distance": detector.decision.terms["self_distance"]}
    nothing = explain(decided(detector, terms=terms), tokens)
    require_sums(nothing)
    assert nothing.atoms == ()
    assert nothing.contributions.shape == (3, 0)


@given(seed=st.integers(0, 10**6))
def test_what_is_ignored_has_no_part_and_the_rest_adds_up(
    detectors: dict[str, Detector], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cells = rng.choice([0, 1, 0.3], size=(3, 4, 4)).astype(np.float32)
    cells[:, 3, 0] = 1
    kept = Kept(torch.from_numpy(np.kron(cells, np.ones((8, 8), np.float32))))
    tokens = random_tokens(seed)
    other = {
        name: batch.where(_counts(kept, GRIDS[name])[..., None], batch.flip(1))
        for name, batch in tokens.items()
    }
    spec = tiled(TinyBackbone(), [64], overlap=0).spec
    large = Kept(kept.shares.repeat_interleave(2, 1).repeat_interleave(2, 2))
    grids = {"1": (8, 8), "2": (4, 4)}
    for detector in detectors.values():
        explanation = explain(detector, tokens, kept=kept)
        require_sums(explanation)
        again = explain(detector, other, kept=kept)
        np.testing.assert_array_equal(explanation.contributions, again.contributions)
        for image_score in IMAGE_SCORES:
            rule = Published(image_score=image_score)
            require_sums(explain(detector, tokens, rule=rule, kept=kept))
        several = random_tokens(seed, grids=grids)
        judged = judge(detector, several, grids, spec, detector.record.rule, large)
        require_sums(explain(detector, several, grids, spec, judged=judged, kept=large))


def _counts(kept: Kept, grid: tuple[int, int]) -> torch.Tensor:
    """(B, 1 + h·w) bool: tokens that count, CLS, which is made of them, among these."""
    return F.pad(kept.at(grid).flatten(1) > 0, (1, 0), value=False)
