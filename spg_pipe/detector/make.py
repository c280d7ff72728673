"""Feature store + SparseAutoencoders → Detectors: guides and the decision, and what is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from spg_pipe.artefacts.checkpoint import Checkpoints
from spg_pipe.artefacts.files import versions
from spg_pipe.decision.components import Sides
from spg_pipe.decision.fit import fit_decision, measure
from spg_pipe.decision.rules import Additive, Published, Rule
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import Auxiliary, DetectorRecord, Painted, SaeOrigin
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import FOLDS, ClassSums, class_sums, direction, match
from spg_pipe.guides.kinds import ContrastGuides, Guides, guides_of
from spg_pipe.guides.layer import LayerGuides, SignedAtoms, View
from spg_pipe.guides.trained.train import (
    GuideFit,
    GuideRun,
    Point,
    Progress,
    check_images,
    check_sae,
    fit_guides,
)
from spg_pipe.guides.trained.trainer import PUBLISHED, Constants
from spg_pipe.recipe.params import DecisionParams, MethodParams, Params, ScoreParams
from spg_pipe.recipe.protocol import protocol
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.format import Selection
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import labelled_images

Report = Callable[[str], None]
"""Told what is noteworthy about a result, a sentence at a time."""
Curve = list[dict[str, float]]
"""A row an epoch: mean losses and positive codes, over layers; empty for contrast guides."""


@dataclass(frozen=True)
class DetectorPlan:
    """All that determines a detector beside its auxiliary store."""

    saes: SaeRun
    """Only their dictionaries and dead masks are used."""
    seed: int
    """Of trained guides: of the initial codes, and of the images' order. Contrast guides depend on
    it through the SAE alone."""
    guides: Guides
    method: MethodParams = field(default_factory=MethodParams)
    score: ScoreParams = field(default_factory=ScoreParams)
    decision: DecisionParams = field(default_factory=DecisionParams)
    """Fitted if `score.rule` is `additive`."""
    constants: Constants = PUBLISHED
    """Of the training."""

    @classmethod
    def of(cls, params: Params, saes: SaeRun, seed: int) -> "DetectorPlan":
        """What a recipe asks for."""
        guides = guides_of(params.guides)
        return cls(saes, seed, guides, params.method, params.score, params.decision)

    def ordered_by(self, seed: int) -> "DetectorPlan":
        """Trained guides see the images in the order of another seed: several share a pass."""
        if isinstance(self.guides, ContrastGuides):
            return self
        return replace(self, guides=self.guides.model_copy(update={"order_seed": seed}))

    @property
    def run(self) -> GuideRun | None:
        """The training of trained guides."""
        if isinstance(self.guides, ContrastGuides):
            return None
        return GuideRun(self.saes, self.guides, self.seed, self.constants)

    @property
    def stream(self) -> tuple[int | str, ...]:
        """Plans with the same value are made in one pass over the store."""
        return self.run.stream if self.run else (self.guides.kind, self.method.detection)


@dataclass(frozen=True)
class Made:
    """The guides of a plan, and what the decision needs of them."""

    layers: dict[str, LayerGuides]
    curve: Curve
    sides: dict[str, Sides]
    """By layer; directions (F, D). Row 0: the final guides'. Of contrast guides F = 1 + FOLDS; row
    1 + f: those made without the images of fold f. The basis is the final guides' for all."""


def make_detector(
    store: FeatureStore,
    plan: DetectorPlan,
    *,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
) -> tuple[Detector, Curve]:
    """Make the guides of every layer, and a detector of them.

    An `SpgError` if the SAE does not belong to the store, or there is nothing to learn from.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary dataset, with masks.
    cache : "auto" | "device" | "host" | "none"
        Where the tokens wait, see `TokenSource`; does not change the result.
    """
    return make_detectors(store, [plan], device=device, cache=cache, progress=progress)[0]


def make_detectors(
    store: FeatureStore,
    plans: Sequence[DetectorPlan],
    *,
    device: str = "cpu",
    cache: str = "auto",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    say: Report | None = None,
    point: Point = lambda number, row: None,
) -> list[tuple[Detector, Curve]]:
    """`make_detector` for several plans of one `stream`, in one pass over the store an epoch.

    Each detector and curve is to the bit what its plan would give alone. See `fit_guides` for
    checkpoints and `point`.
    """
    judges: np.ndarray | None = None
    runs = [plan.run for plan in plans if plan.run]
    if not runs:
        made, folds = contrast_guides(store, plans, device, progress)
        judges = np.stack([np.zeros_like(folds), folds + 1], axis=1)
    else:
        fits = fit_guides(
            store,
            runs,
            plans[0].method,
            device=device,
            cache=cache,
            progress=progress,
            checkpoints=checkpoints,
            point=point,
        )
        made = [_trained(fit, plan) for fit, plan in zip(fits, plans, strict=True)]
    results = []
    for plan, guides in zip(plans, made, strict=True):
        rule: Rule = Published(image_score=plan.score.image_score)
        if plan.score.rule == "additive":
            measured = measure(store, guides.sides, judges, device=device)
            fit = fit_decision(measured, plan.decision, honest=0 if judges is None else 1)
            if say:
                for note in fit.notes:
                    say(note)
            rule = Additive(
                weights=plan.decision, cross_fitted=judges is not None, decision=fit.decision
            )
        record = _record(store, plan, guides.layers, rule)
        results.append((Detector(guides.layers, record), guides.curve))
    return results


def _trained(fit: GuideFit, plan: DetectorPlan) -> Made:
    views: tuple[View, View] = (plan.method.detection, "patches")
    layers = {
        name: LayerGuides.of_codes(
            trainer.ema.cpu(),
            views,
            trainer.atoms.cpu(),
            trainer.dead.cpu(),
            trainer.top_k,
            trainer.grid,
        )
        for name, trainer in fit.trainers.items()
    }
    _require_guides(layers)
    sides = {
        name: Sides(guides.directions(as_cosines=True), guides.basis)
        for name, guides in layers.items()
    }
    return Made(layers, fit.curve, sides)


def contrast_guides(
    store: FeatureStore,
    plans: Sequence[DetectorPlan],
    device: str,
    progress: Progress | None = None,
) -> tuple[list[Made], np.ndarray]:
    """Contrast guides of every plan, from one pass over the store; and each image's fold (n,).

    An `SpgError` as of `make_detector`.
    """
    for plan in plans:
        check_sae(store, plan.saes)
    check_images(store)
    told = (lambda done, total: progress(done, total, None)) if progress else None
    sums = class_sums(store, plans[0].method.detection, device, told)
    made = [
        guides_from_sums(store, plan.saes, plan.guides.atoms, sums)
        for plan in plans
        if isinstance(plan.guides, ContrastGuides)
    ]
    return made, sums.folds


def guides_from_sums(
    store: FeatureStore,
    saes: SaeRun,
    atoms: int,
    sums: ClassSums,
    among: np.ndarray | None = None,
) -> Made:
    """Contrast guides of a dictionary, and those without each fold.

    Learnt from the images `among` (n,), or all. An `SpgError` if nothing has patches with and
    without a defect.
    """
    layers: dict[str, LayerGuides] = {}
    sides: dict[str, Sides] = {}
    rows = np.ones(len(store), bool) if among is None else among
    choices = [rows, *(rows & (sums.folds != fold) for fold in range(FOLDS))]
    for layer, shape in store.spec.layers.items():
        table, dead = saes.layers[layer].atoms.detach().cpu(), saes.dead[layer]
        pairs: dict[View, SignedAtoms] = {}
        directions: dict[View, Tensor] = {}
        for view in sums.views:
            final, *without_fold = [
                match(direction(sums, layer, view, chosen), table, dead, atoms)
                for chosen in choices
            ]
            if len(final.atom_ids):
                pairs[view] = final
                # Without a fold a class may be missing: its images are then judged by all.
                each = [pair if len(pair.atom_ids) else final for pair in (final, *without_fold)]
                directions[view] = torch.stack([pair.side(table) for pair in each])
        if "patches" not in pairs:
            raise SpgError(
                f"{store.path}, layer {layer}: no category has patches with and without a defect, "
                "so contrast guides have nothing to tell apart. Use guides.kind: trained, or an "
                "auxiliary set whose defects leave some of the image free."
            )
        layers[layer] = LayerGuides.of_contrast(pairs, table, shape.grid)
        sides[layer] = Sides(directions, layers[layer].basis)
    return Made(layers, [], sides)


def _record(
    store: FeatureStore, plan: DetectorPlan, layers: dict[str, LayerGuides], rule: Rule
) -> DetectorRecord:
    images = len(labelled_images(store))
    saes = plan.saes.record
    record = DetectorRecord(
        layers={name: guides.grid for name, guides in layers.items()},
        seed=plan.seed,
        protocol=protocol(plan.method.protocol),
        detection=plan.method.detection,
        guides=plan.guides,
        rule=rule,
        auxiliary=Auxiliary(
            dataset=store.spec.dataset,
            split=store.spec.split,
            images=images,
            left_out=len(store) - images,
            selection=Selection.of_manifest(store.selection),
            synthetic=Painted.model_validate(store.synthetic) if store.synthetic else None,
        ),
        store=store.fingerprint,
        sae=SaeOrigin(fingerprint=saes.fingerprint, params=saes.sae, tokens_seen=saes.tokens_seen),
        backbone=store.spec.backbone.untiled,
        licences=store.spec.licences,
        painted_on=tuple(sorted(set(store.spec.sources.values()))),
        versions=versions(),
    )
    return record.sealed()


def _require_guides(layers: dict[str, LayerGuides]) -> None:
    """Guides without a direction would give every image the same score."""
    for name, guides in layers.items():
        lengths = torch.cat([pair.vectors for pair in guides.pairs.values()]).norm(dim=1)
        if not bool(lengths.isfinite().all()) or not bool((lengths > 0).all()):
            raise SpgError(
                f"Layer {name}: the guides came to nothing (lengths "
                f"{', '.join(f'{length:.3g}' for length in lengths.tolist())}). "
                "Train for fewer epochs, or use guides.kind: contrast."
            )
