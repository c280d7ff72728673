"""What a detector made the same way says of images that it has not learned from.

Its own auxiliary images are all that a person has at first. So for each fold of them a detector is
made from the other folds, wholly: guides, scales, weights and zero. Only the dictionary, which
sees no labels, has seen all tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spg_pipe.datasets.manifest import LABEL_UNKNOWN
from spg_pipe.decision.fit import fit_decision, measure
from spg_pipe.detector.coarse import coarse_masks, finished_map, image_auroc, pixel_figures
from spg_pipe.detector.make import guides_from_sums
from spg_pipe.guides.contrast import FOLDS, class_sums, direction
from spg_pipe.recipe.params import Params
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore


@dataclass(frozen=True)
class OutOfFold:
    """Images of a store, each judged without its fold."""

    folds: np.ndarray
    """(n,) int in 0 … FOLDS − 1; copies of an image are in one."""
    scores: np.ndarray
    """(n,) float64; NaN where the other folds do not suffice for a detector."""
    image_auroc: float
    """Mean over categories; NaN where no category has both classes."""
    pixel_ap: float
    """Of maps at a quarter of S, the mean over categories; NaN without defective pixels."""


def judge_out_of_fold(
    store: FeatureStore,
    saes: SaeRun,
    params: Params,
    contents: np.ndarray,
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OutOfFold:
    """Judge every image of a labelled store by contrast guides made without its fold.

    Of `params`, `method`, `guides.atoms` and `decision` count, with `score.rule: additive`.
    `contents` (n,) are identities of the images' contents: a copy would tell what its image is.
    """
    sums, regions = class_sums(store, params.method.detection, device), coarse_masks(store)
    scores, maps = np.full(len(store), np.nan), dict[int, np.ndarray]()
    _, first, copy_of = np.unique(contents, return_index=True, return_inverse=True)
    folds = sums.folds[first[copy_of]]
    judges = np.stack([np.zeros_like(folds), folds + 1], axis=1)
    for fold in range(FOLDS):
        progress(fold, FOLDS)
        rows, others = np.flatnonzero(folds == fold), folds != fold
        teaches = all(direction(sums, name, "patches", others).any() for name in store.layers)
        if not len(rows) or not teaches:
            continue
        made = guides_from_sums(store, saes, params.guides.atoms, sums, others)
        measured = measure(store, made.sides, judges, device=device)
        if not measured.judged(others).any():
            continue
        decision = fit_decision(measured, params.decision, honest=1, among=others).decision
        shares = decision.shares(measured.image_values(decision, 0, rows))
        scores[rows] = decision.bias + np.sum(list(shares.values()), axis=0)
        for row in regions.keys() & set(rows.tolist()):
            maps[row] = finished_map(measured, regions, decision, 0, row)
    progress(FOLDS, FOLDS)
    judged = np.flatnonzero(~np.isnan(scores) & (sums.labels != LABEL_UNKNOWN))
    seen = {row: regions[row] for row in maps}
    return OutOfFold(
        folds,
        scores,
        image_auroc(sums.labels[judged], sums.categories[judged], scores[judged]),
        float(pixel_figures(maps.__getitem__, judged, sums.categories[judged], seen)[1]),
    )
