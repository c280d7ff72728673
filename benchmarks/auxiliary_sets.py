"""What does one more auxiliary set change?

    python -m benchmarks.auxiliary_sets SAE STORE.zarr STORE.zarr … [--only-targets NAME …]

Every set in turn is the target; every subset of the others is the auxiliary set. Guides come from
sums that one pass over each store leaves, so that a subset costs no further pass. Prints the mean
figures of the target by the number of auxiliary sets, and the best set alone. The dictionary is the
same for all (an SAE that has seen a target's tokens has seen no label of it), and so is the span
in which self-distances are taken: that of the atoms that all sets together choose, the target's
labels among them. Weights are fitted on images that the guides were made from. Maps are judged at a
quarter of the size.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spg_pipe.decision.components import Components, Sides
from spg_pipe.decision.fit import Measured, fit_decision, measure
from spg_pipe.detector.coarse import coarse_masks, judge_rows, known_mean
from spg_pipe.guides.contrast import ClassSums, LayerSums, class_sums, direction, match
from spg_pipe.guides.layer import LayerGuides
from spg_pipe.recipe.params import DecisionParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

ATOMS = 32
Subset = tuple[int, ...]
"""Numbers of the sets."""


def joined_layers(
    parts: Sequence[ClassSums] | Sequence[Measured],
    kind: type[LayerSums] | type[Components],
    names: Sequence[str],
) -> dict[str, Any]:
    """Layer → the tensors of all parts, one after the other."""
    return {
        layer: kind(
            *(torch.cat([getattr(part.layers[layer], name) for part in parts]) for name in names)
        )
        for layer in parts[0].layers
    }


def joined_sums(sums: Sequence[ClassSums]) -> ClassSums:
    """Of all sets as if they were one, whose categories stay apart."""
    layers = joined_layers(sums, LayerSums, ("patches", "counts", "features"))
    labels, folds = (
        np.concatenate([getattr(each, name) for each in sums]) for name in ("labels", "folds")
    )
    return ClassSums(layers, sums[0].detection, apart(sums), labels, folds)


def apart(parts: Sequence[ClassSums] | Sequence[Measured]) -> np.ndarray:
    """Categories of all parts (n,), each part's after those of the parts before it."""
    starts = np.cumsum([0, *(int(part.categories.max()) + 1 for part in parts)])
    return np.concatenate([p.categories + s for p, s in zip(parts, starts[:-1], strict=True)])


def joined_components(measured: Sequence[Measured]) -> Measured:
    """The same of what was measured."""
    layers = joined_layers(measured, Components, ("guides", "self_distance", "detection"))
    labels = np.concatenate([each.labels for each in measured])
    return replace(measured[0], layers=layers, labels=labels, categories=apart(measured))


def sides_of(sums: ClassSums, saes: SaeRun, among: Mapping[Subset, np.ndarray]) -> dict[str, Sides]:
    """By layer, directions of every subset, zeros where a class is missing; atoms of all sets."""
    sides = {}
    for layer, sae in saes.layers.items():
        atoms, dead = sae.atoms.detach(), saes.dead[layer]
        pairs = {
            view: match(direction(sums, layer, view), atoms, dead, ATOMS) for view in sums.views
        }
        rows: dict[str, list[torch.Tensor]] = {view: [] for view in sums.views}
        for chosen in among.values():
            for view in sums.views:
                pair = match(direction(sums, layer, view, chosen), atoms, dead, ATOMS)
                rows[view].append(pair.side(atoms))
        basis = LayerGuides.of_contrast(pairs, atoms, (1, 1)).basis
        sides[layer] = Sides({view: torch.stack(each) for view, each in rows.items()}, basis)
    return sides


def main() -> None:
    """Print a table a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sae", type=Path)
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--only-targets", nargs="*", default=[], help="never auxiliary")
    options = parser.parse_args()
    saes = SaeRun.load(options.sae)
    stores = [FeatureStore(path) for path in options.stores]
    names = [store.spec.dataset for store in stores]
    usable = [number for number, name in enumerate(names) if name not in options.only_targets]
    each = [class_sums(stores[number]) for number in usable]
    sums = joined_sums(each)
    owner = np.repeat(usable, [len(stores[number]) for number in usable])
    subsets = [s for size in range(1, len(usable)) for s in itertools.combinations(usable, size)]
    among = {subset: np.isin(owner, subset) for subset in subsets}
    sides = sides_of(sums, saes, among)
    measured = [measure(store, sides) for store in stores]
    whole = joined_components([measured[number] for number in usable])
    decisions = {}
    for which, (subset, chosen) in enumerate(among.items()):
        fit = fit_decision(whole, DecisionParams(), final=which, honest=which, among=chosen)
        decisions[subset] = which, fit.decision
    print(f"SAE {options.sae.name}; sets {', '.join(names[number] for number in usable)}")
    print("| target | sets | image AUROC | pixel AUROC | pixel AP |\n|---|---|---|---|---|")
    for target, store in enumerate(stores):
        regions, everything = coarse_masks(store), np.ones(len(store), bool)
        by_size: dict[int, list[np.ndarray]] = {}
        alone = {}
        for subset, (which, decision) in decisions.items():
            if target in subset:
                continue
            figures = judge_rows(measured[target], regions, decision, which, everything)
            by_size.setdefault(len(subset), []).append(figures)
            if len(subset) == 1:
                alone[names[subset[0]]] = figures
        for size, figures in by_size.items():
            shown = " | ".join(f"{value:.3f}" for value in known_mean(figures))
            print(f"| {names[target]} | {size} ({len(figures)}) | {shown} |")
        for name, values in alone.items():
            print(f"| {names[target]} | {name} | {' | '.join(f'{v:.3f}' for v in values)} |")


if __name__ == "__main__":
    main()
