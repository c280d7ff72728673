"""Feature store + SparseAutoencoders → Detectors: guides and the decision, and what is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.artefacts.files import fingerprint, versions
from spg_pipe.decision.fit import fit_decision
from spg_pipe.detector.model import FORMAT, Detector, LayerGuides
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import (
    FOLDS,
    VIEWS,
    ClassSums,
    Dictionary,
    Pair,
    class_sums,
    direction,
)
from spg_pipe.guides.train import (
    GuideFit,
    GuideRun,
    Progress,
    check_images,
    check_sae,
    fit_guides,
)
from spg_pipe.guides.trainer import GuideTrainer
from spg_pipe.recipe.params import DecisionParams, GuideParams, MethodParams, ScoreParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images

Report = Callable[[str], None]
"""Told what is noteworthy about a result, a sentence at a time."""


@dataclass(frozen=True)
class Rules:
    """How a detector scores."""

    score: ScoreParams
    decision: DecisionParams
    """Fitted if `score.rule` is `additive`."""


@dataclass(frozen=True)
class _Guides:
    """The guides of a run, and what the decision needs of them."""

    layers: dict[str, LayerGuides]
    curve: list[dict[str, float]]
    directions: dict[str, dict[str, Tensor]] | None = None
    """Layer → view → (1 + FOLDS, D); None: there are no guides made without some images."""


def train_guides(
    store: FeatureStore,
    saes: SaeRun,
    params: GuideParams,
    method: MethodParams,
    score: ScoreParams,
    *,
    seed: int,
    decision: DecisionParams | None = None,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
) -> tuple[Detector, list[dict[str, float]]]:
    """Make the guides of every layer, and a detector of them.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset, with masks.
    saes : SaeRun
        Its SAEs; only their dictionaries and dead masks are used.
    score : ScoreParams
        Becomes part of the detector.
    seed : int
        Seeds the initial codes, and the order of the images unless `params.order_seed` is set.
        Contrast guides depend on it through the SAE alone.
    decision : DecisionParams, optional
        Of the decision that is fitted if `score.rule` is `additive`.
    cache : "auto" | "device" | "host" | "none"
        Where the tokens wait, see `TokenSource`; does not change the result.

    Returns
    -------
    detector : Detector
    curve : list of dict
        A row an epoch: mean losses and positive codes, over layers; empty for contrast guides.

    Raises
    ------
    SpgError
        If the SAE does not belong to the store, or there is nothing to learn from.
    """
    run = GuideRun(saes, params, seed)
    rules = Rules(score, decision or DecisionParams())
    return train_guides_together(
        store, [run], method, [rules], device=device, cache=cache, progress=progress
    )[0]


def train_guides_together(
    store: FeatureStore,
    runs: Sequence[GuideRun],
    method: MethodParams,
    rules: Sequence[Rules],
    *,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    say: Report | None = None,
) -> list[tuple[Detector, list[dict[str, float]]]]:
    """`train_guides` for several seeds or settings, in one pass over the store an epoch.

    Each detector and curve is to the bit what its run would give alone; each gets the rules of its
    place. See `fit_guides` for runs and checkpoints.
    """
    if {run.params.kind for run in runs} == {"contrast"}:
        made, folds = _contrast(store, runs, device, progress)
    else:
        fits = fit_guides(
            store,
            runs,
            method,
            device=device,
            cache=cache,
            progress=progress,
            checkpoints=checkpoints,
        )
        made, folds = [_trained(fit) for fit in fits], None
    results = []
    for run, guides, rule in zip(runs, made, rules, strict=True):
        detector = _detector(store, run, guides.layers, method, rule.score)
        if rule.score.rule == "additive":
            detector, notes = _with_decision(detector, store, guides, folds, rule, device)
            if say:
                for note in notes:
                    say(note)
        results.append((detector, guides.curve))
    return results


def _trained(fit: GuideFit) -> _Guides:
    layers = {name: _finished(trainer) for name, trainer in fit.trainers.items()}
    _require_guides(layers)
    return _Guides(layers, fit.curve)


def _contrast(
    store: FeatureStore, runs: Sequence[GuideRun], device: str, progress: Progress | None
) -> tuple[list[_Guides], np.ndarray]:
    """Contrast guides of every run, from one pass over the store; and each image's fold."""
    for run in runs:
        check_sae(store, run.saes)
    check_images(store)
    told = (lambda done, total: progress(done, total, None)) if progress else None
    sums = class_sums(store, device, told)
    return [_contrast_guides(store, run, sums) for run in runs], sums.folds


def _contrast_guides(store: FeatureStore, run: GuideRun, sums: ClassSums) -> _Guides:
    layers: dict[str, LayerGuides] = {}
    directions: dict[str, dict[str, Tensor]] = {}
    choices = [None, *(sums.folds != fold for fold in range(FOLDS))]
    for layer, shape in store.spec.layers.items():
        dictionary = Dictionary.of(run.saes, layer)
        pairs: dict[str, Pair | None] = {}
        directions[layer] = {}
        for view in VIEWS:
            found = [
                dictionary.match(direction(sums, layer, view, chosen), run.params.atoms)
                for chosen in choices
            ]
            pairs[view] = final = found[0]
            if final is not None:
                # Without a fold a class may be missing: its images are then judged by all.
                rows = [dictionary.side(pair or final) for pair in found]
                directions[layer][view] = torch.stack(rows)
        found_patches = pairs["patches"]
        if found_patches is None or not bool(found_patches.codes.any()):
            raise SpgError(
                f"{store.path}, layer {layer}: no category has patches with and without a defect, "
                "so contrast guides have nothing to tell apart. Use guides.kind: trained, or an "
                "auxiliary set whose defects leave some of the image free."
            )
        layers[layer] = LayerGuides.from_pairs(pairs, dictionary.atoms, shape.grid)
    return _Guides(layers, [], directions)


def _with_decision(
    detector: Detector,
    store: FeatureStore,
    guides: _Guides,
    folds: np.ndarray | None,
    rules: Rules,
    device: str,
) -> tuple[Detector, list[str]]:
    """The detector with the decision fitted on its auxiliary store."""
    directions = guides.directions
    if directions is None:
        directions, folds = {layer: detector.directions(layer) for layer in detector.layers}, None
    fit = fit_decision(store, directions, folds, rules.decision, rules.score.sigma, device=device)
    parts = {
        "decision": fit.decision.to_dict(),
        "decision_params": rules.decision.model_dump(mode="json"),
        "decision_cross_fitted": folds is not None,
    }
    return _sealed(detector.layers, detector.config | parts), fit.notes


def _detector(
    store: FeatureStore,
    run: GuideRun,
    layers: dict[str, LayerGuides],
    method: MethodParams,
    score: ScoreParams,
) -> Detector:
    images = len(labelled_images(store))
    content = {
        "kind": "detector",
        "format": FORMAT,
        "layers": {name: {"grid": list(value.grid)} for name, value in layers.items()},
        "seed": run.seed,
        "tau": method.tau,
        "detection": method.detection,
        # The size of a batch does not change a score.
        "score": score.model_dump(mode="json", exclude={"batch_images"}),
        "guides": run.params.model_dump(mode="json"),
        "protocol": protocol(method.protocol).to_dict(),
        "auxiliary": {
            "dataset": store.spec.dataset,
            "split": store.spec.split,
            "images": images,
            "left_out": len(store) - images,
        }
        | ({"selection": store.selection} if store.selection else {})
        | ({"synthetic": store.synthetic} if store.synthetic else {}),
        "sae": {
            "sae": run.saes.record.sae and run.saes.record.sae.model_dump(mode="json"),
            "tokens_seen": run.saes.record.tokens_seen,
            "fingerprint": run.saes.record.fingerprint,
        },
        "inputs": {"store": store.fingerprint, "sae": run.saes.record.fingerprint},
        "backbone": store.spec.backbone.untiled.content(),
        "licences": list(store.licences),
    }
    if store.sources:
        content["painted_on"] = sorted(set(store.sources.values()))
    return _sealed(layers, content)


def _sealed(layers: dict[str, LayerGuides], content: dict[str, Any]) -> Detector:
    """With the fingerprint of all that determined it, and the versions beside it."""
    content = {k: v for k, v in content.items() if k not in ("fingerprint", "versions")}
    return Detector(layers, content | {"fingerprint": fingerprint(content), "versions": versions()})


def _require_guides(layers: dict[str, LayerGuides]) -> None:
    """Guides without a direction would give every image the same score."""
    for name, guides in layers.items():
        lengths = guides.vectors.norm(dim=1)
        if not bool(lengths.isfinite().all()) or not bool((lengths > 0).all()):
            raise SpgError(
                f"Layer {name}: the guides came to nothing (lengths "
                f"{', '.join(f'{length:.3g}' for length in lengths.tolist())}). "
                "Lower guides.lr or guides.sparsity, or train for fewer epochs."
            )


def _finished(trainer: GuideTrainer) -> LayerGuides:
    return LayerGuides.from_codes(
        trainer.result.cpu(),
        trainer.atoms.cpu(),
        trainer.dead.cpu(),
        trainer.params.top_k,
        trainer.grid,
    )
