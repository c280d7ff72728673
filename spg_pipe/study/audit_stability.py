"""Stability: does another seed give the same atoms? And exactness: does an atom do what is said?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from spg_pipe.decision.model import MAP_TOP, top_weights
from spg_pipe.detector.judge import judge
from spg_pipe.detector.model import Detector
from spg_pipe.explain.dictionary import MATCHED, matches
from spg_pipe.explain.explanation import explain
from spg_pipe.guides.layer import LayerGuides, Pair
from spg_pipe.guides.model import unit
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens
from spg_pipe.study.audit_case import Case
from spg_pipe.study.audit_dictionaries import MEANS, OWN, UNTRAINED
from spg_pipe.study.audit_tables import NAMED, Row

STABILITY, EXACTNESS = "stability", "contributions"
ALL, START = "all atoms", ", before and after training"
_IMAGES, _ATOMS = 8, 8
"""That contributions are tried on."""


def stability(case: Case) -> Iterator[Row]:
    """How near each atom comes to one of each other seed, of the SAE, before training, of k-means.

    Means over layers and other seeds: `best_cosine`, and `matched`, the share with a cosine of at
    least `MATCHED`. Centroids are compared without the mean token, which all of them share.
    `START`: each atom's cosine with what it was before training.
    """
    seeds = [seed for seed in case.run.params.seeds if seed != case.seed]
    names = [name for name in (OWN, UNTRAINED, MEANS) if name in case.dictionaries]
    for name in names if seeds else ():
        others = [case.dictionary(name, seed) for seed in seeds]
        own, cosines = case.dictionaries[name], []
        for layer in own.layers:
            centre = case.normal[layer] if name == MEANS else torch.zeros(())
            rows = [unit(of.layers[layer].atoms.detach() - centre) for of in others]
            mine = unit(own.layers[layer].atoms.detach() - centre)
            dead = [of.dead[layer] for of in others]
            cosines.append(matches(mine, rows, own.dead[layer], dead).cosines)
        yield from _cosine_rows(case, name, "", cosines)
    start, cosines = case.dictionaries[UNTRAINED], []
    for layer, sae in case.dictionaries[OWN].layers.items():
        both = sae.atoms.detach() * start.layers[layer].atoms.detach()
        cosines.append(both.sum(1, keepdim=True).numpy())
    yield from _cosine_rows(case, OWN, START, cosines)


def _cosine_rows(case: Case, name: str, what: str, cosines: Sequence[np.ndarray]) -> Iterator[Row]:
    """Rows of cosines (C, other dictionaries) of each layer: of all atoms, and of the guides'."""
    layers = case.dictionaries[name].layers
    dead = case.dictionaries[name].dead
    chosen = {ALL: [~dead[layer].numpy() for layer in layers]}
    if name == OWN:
        chosen[NAMED] = [case.detector.layers[layer].atom_ids.numpy() for layer in layers]
    row, seeds = case.row(STABILITY, case.aux, name), len(case.run.params.seeds)
    for who, rows in chosen.items():
        values = np.concatenate([of[some] for of, some in zip(cosines, rows, strict=True)])
        for figure, each in (("best_cosine", values), ("matched", values >= MATCHED)):
            means = each.mean(axis=0)
            ends = (float(means.min()), float(means.max()))
            yield row(f"{who}{what}", seeds, figure, float(means.mean()), *ends)


def exactness(case: Case) -> Iterator[Row]:
    """The largest difference between an atom's stated share and what the score loses without it.

    On some images of every target, of the atoms with the largest shares; the pixels that count as
    the map's highest are held.
    """
    for target, store in case.targets.items():
        row, value = case.row(EXACTNESS, target, OWN), largest_difference(case.detector, store)
        yield row("stated less measured", _ATOMS, "largest_difference", value)


def largest_difference(detector: Detector, store: FeatureStore) -> float:
    """See `exactness`."""
    images = np.unique(np.linspace(0, len(store) - 1, _IMAGES).astype(int))
    tokens = {layer: image_tokens(store, layer, images) for layer in store.layers}
    grids = {layer: store.spec.layers[layer].grid for layer in store.layers}
    seen, rule = store.spec.backbone, detector.record.rule
    judged = judge(detector, tokens, grids, seen, rule)
    explanation = explain(detector, tokens, grids, seen, rule, judged)
    stated: dict[tuple[str, int], np.ndarray] = {}
    for row, values in zip(explanation.atoms, explanation.contributions.T, strict=True):
        stated[row.layer, row.atom] = stated.get((row.layer, row.atom), 0) + values
    strongest = sorted(stated, key=lambda atom: -np.abs(stated[atom]).mean())[:_ATOMS]
    term = detector.decision.terms.get(MAP_TOP)

    def lost(less: Detector) -> np.ndarray:
        """(B,) by how much scores are lower, with the pixels that count held."""
        again = judge(less, tokens, grids, seen, rule)
        before, after = judged.columns, again.columns
        drop = before["score"] - after["score"]
        if term and judged.maps is not None and again.maps is not None:
            weights = top_weights(judged.maps, detector.decision.top_share)
            held = (weights * (judged.maps - again.maps)).sum(axis=(1, 2))
            name = f"share_{MAP_TOP}"
            drop += held * term.weight / term.deviation - (before[name] - after[name])
        return drop

    return max(
        float(np.abs(lost(without(detector, *atom)) - stated[atom]).max()) for atom in strongest
    )


def without(detector: Detector, layer: str, atom: int) -> Detector:
    """The detector of contrast guides without an atom of a layer; its self-distances are kept."""
    guides = detector.layers[layer]
    gone = guides.atom_ids == atom
    pairs = {}
    for view, pair in guides.pairs.items():
        lost = pair.codes[:, gone] @ guides.atoms[gone]
        codes = pair.codes.masked_fill(gone, 0)
        pairs[view] = Pair(pair.normal - lost[0], pair.anomaly - lost[1], codes)
    changed: LayerGuides = replace(guides, pairs=pairs)
    return replace(detector, layers={**detector.layers, layer: changed})
