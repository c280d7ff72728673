"""Faithfulness: what becomes of the figures when guides keep, or lose, some of their atoms.

Where an atom is left out, what it gives on normal auxiliary patches on average is left in: a
constant, which contrast guides do not notice.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spg_pipe.detector.coarse import FIGURES
from spg_pipe.detector.model import Detector
from spg_pipe.study.audit_case import Case, Directions, LayerView, matched
from spg_pipe.study.audit_dictionaries import DIRECTION, OWN
from spg_pipe.study.audit_judging import by_guides_alone, judge_directions
from spg_pipe.study.audit_tables import WHOLE, Row

Parts = Mapping[LayerView, Tensor]
"""(m, D): what each atom adds to a direction, coefficient times atom."""
DRAWS = 3
"""Of atoms removed at random; their figures are averaged."""


class Variant(NamedTuple):
    """Directions made of some atoms."""

    dictionary: str
    what: str
    """`kept`, `removed`, `removed at random`: of a guide's atoms; `made of`: matched with n."""
    n: int
    """Atoms of every layer and view that were chosen, the strongest first."""
    directions: Directions


def faithfulness(case: Case, detector: Detector, claim: str) -> Iterator[Row]:
    """Figures of a detector of the case by some of its atoms, on every target.

    Of guides alone; of the recipe's own detector also with its self-distances, by fewer variants.
    """
    variants = [*_variants(case, detector)]
    decision = detector.decision if detector.record.rule.rule == "additive" else None
    tests = {claim: (variants, by_guides_alone(decision) if decision else None)}
    if decision:
        few = [v for v in variants if v.dictionary in (OWN, DIRECTION) or v.what == "made of"]
        tests[f"{claim}, {WHOLE}"] = few, decision
    for target, store in case.targets.items():
        for name, (chosen, how) in tests.items():
            directions = [each.directions for each in chosen]
            figures = judge_directions(store, directions, detector, how, case.normal)
            yield from _rows(case, name, target, chosen, figures)


def detector_parts(detector: Detector) -> dict[LayerView, Tensor]:
    """What each atom adds to the detector's directions; its coefficient is not 0."""
    parts: dict[LayerView, Tensor] = {}
    for layer, guides in detector.layers.items():
        for view in guides.pairs:
            signed = guides.coefficients(view, as_cosines=not detector.contrast).float()
            parts[layer, view] = (signed[:, None] * guides.atoms)[signed != 0]
    return parts


def _variants(case: Case, detector: Detector) -> Iterator[Variant]:
    """The detector's atoms, kept and removed; and what other dictionaries make of its directions.

    Of trained guides others are matched to the guides' own direction.
    """
    own, gaps, count = detector_parts(detector), case.gaps, case.run.params.guides.atoms
    yield from ablations(OWN, own, gaps, DRAWS, case.seed)
    goals = gaps if detector.contrast else {place: rows.sum(0) for place, rows in own.items()}
    goals = {place: goals[place] for place in own}
    yield Variant(DIRECTION, "made of", count, goals)
    for name, saes in case.dictionaries.items():
        numbers = doubling(count)
        matches = {place: matched(goal, saes, place[0], numbers) for place, goal in goals.items()}
        for index, n in enumerate(numbers):
            made = {place: steps[index].parts.sum(0) for place, steps in matches.items()}
            yield Variant(name, "made of", n, made)
        if name != OWN:
            whole = {place: steps[-1].parts for place, steps in matches.items()}
            yield from ablations(name, whole, gaps)


def doubling(most: int) -> list[int]:
    """1, 2, 4 … below `most`, and `most`."""
    return [2**power for power in range(most.bit_length()) if 2**power < most] + [most]


def ablations(
    name: str, parts: Parts, gaps: Directions, draws: int = 0, seed: int = 0
) -> Iterator[Variant]:
    """Directions with the n strongest atoms alone, without them, and without n random ones.

    An atom is as strong as what it adds to the gap between the classes: |c·a·δ|, by the auxiliary
    set alone. n counts the atoms of each layer and view.
    """
    rng = np.random.default_rng(seed)
    whole = {place: rows.sum(0) for place, rows in parts.items()}
    order = {
        place: (rows @ gaps[place]).abs().argsort(descending=True) for place, rows in parts.items()
    }
    most = max(len(rows) for rows in parts.values())
    for n in doubling(most):
        kept = {place: rows[order[place][:n]].sum(0) for place, rows in parts.items()}
        yield Variant(name, "kept", n, kept)
        if n == most:
            return
        rest = {place: whole[place] - kept[place] for place in parts}
        yield Variant(name, "removed", n, rest)
        for _ in range(draws):
            lost = {
                place: rows[rng.permutation(len(rows))[:n]].sum(0) for place, rows in parts.items()
            }
            rest = {place: whole[place] - lost[place] for place in parts}
            yield Variant(name, "removed at random", n, rest)


def _rows(
    case: Case, claim: str, target: str, variants: Sequence[Variant], figures: np.ndarray
) -> Iterator[Row]:
    """Of each variant, draws averaged; the least and the largest of these beside the mean."""
    drawn: dict[tuple[str, str, int], list[int]] = {}
    for number, each in enumerate(variants):
        drawn.setdefault((each.dictionary, each.what, each.n), []).append(number)
    for (name, what, n), numbers in drawn.items():
        row = case.row(claim, target, name)
        for figure, values in zip(FIGURES, figures[numbers].T, strict=True):
            ends = () if len(values) == 1 else (float(values.min()), float(values.max()))
            yield row(what, n, figure, float(values.mean()), *ends)
