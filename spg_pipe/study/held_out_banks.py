"""Settings of a memory bank, judged on the auxiliary set alone.

Its categories stand for targets: some normal images of a category make the bank, guides and
decision are made without its part of the set, and the rest of that part is judged by both.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from spg_pipe.bank.memory import MemoryBank
from spg_pipe.bank.normal_patches import different_images
from spg_pipe.decision.model import Decision
from spg_pipe.errors import UnsuitableError
from spg_pipe.recipe.params import BankParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens
from spg_pipe.study.held_out import (
    Candidate,
    Judged,
    PartsSeen,
    Progress,
    known_mean,
    look_at_parts,
)

_BATCH = 16


def judge_banks(
    store: FeatureStore,
    candidate: Candidate,
    banks: Sequence[BankParams],
    *,
    normals: int,
    seed: int,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Judged:
    """Judge every setting of a bank on every held-out part that has enough normal images.

    Parameters
    ----------
    candidate : Candidate
        How guides and decision are made.
    normals, seed : int
        Images of a bank, and of their draw. A category needs one more in a part, or is left out.
    progress : callable (parts done, parts in all), optional

    Raises
    ------
    UnsuitableError
        If no category has enough normal images, or its defects are painted.
    SpgError
        If the set cannot be parted.
    """
    if store.synthetic:
        raise UnsuitableError(
            f"{store.path} is a synthetic set: its anomalous images are copies of its normal ones, "
            "so a bank would know all of them but the defect, as it never does on a target. Choose "
            "settings of bank on an auxiliary set with real defects, or leave bank.* out of "
            "`choose`."
        )
    shared, judged = look_at_parts(store, [candidate], device), Judged()
    for number, part in enumerate(shared.parts, 1):
        decided = shared.decide(candidate, part)
        each = [
            _judge_category(store, shared, decided, target, banks, device)
            for target in _targets(store, shared, part, normals, seed)
        ]
        if each:
            judged[part] = known_mean(each)
        progress(number, len(shared.parts))
    if not judged:
        raise UnsuitableError(
            f"No part of {store.path} has a category with more than {normals} normal images, so "
            "no setting of a bank can be judged on it. Choose with fewer --normals, or on another "
            "auxiliary set."
        )
    return judged


def _targets(
    store: FeatureStore, shared: PartsSeen, part: str, normals: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each category that can stand for a target: (n,) bool to judge, and the bank's rows."""
    for category in shared.categories(part):
        normal = np.flatnonzero(category & (shared.measured.labels == 0))
        if len(normal) > normals:
            rng = np.random.default_rng([seed, int(normal[0])])
            first = rng.choice(normal, normals, replace=False)
            others = rng.permutation(np.setdiff1d(normal, first))  # in the place of copies
            drawn = np.sort(different_images(store, np.concatenate([first, others]), normals))
            if len(drawn) == normals:
                rows = category.copy()
                rows[drawn] = False
                yield rows, drawn


def _judge_category(
    store: FeatureStore,
    shared: PartsSeen,
    decided: tuple[Decision, int],
    target: tuple[np.ndarray, np.ndarray],
    banks: Sequence[BankParams],
    device: str,
) -> np.ndarray:
    """(banks, 3) figures; settings that differ in weight and share alone have one search."""
    (decision, which), (rows, drawn) = decided, target
    images, by_guides = np.flatnonzero(rows), shared.image_scores(decision, which, rows)

    @cache
    def searched(neighbours: int) -> tuple[MemoryBank, dict[str, Tensor]]:
        params = BankParams(neighbours=neighbours)
        bank = MemoryBank.of_store(store, drawn, params, device=device)
        return bank, _distances(store, bank, images, device)

    @cache
    def tops(neighbours: int, share: float) -> np.ndarray:
        bank, patches = searched(neighbours)
        return bank.with_top_share(share).tops(patches)

    @cache
    def pixels(neighbours: int, weight: float) -> tuple[float, float]:
        patches = searched(neighbours)[1]

        def fused(image: np.ndarray) -> dict[str, Tensor]:
            at = np.searchsorted(images, image)
            odds = shared.measured.log_odds(decision, which, image)
            return {layer: values + weight * patches[layer][at] for layer, values in odds.items()}

        return shared.pixel_metrics(rows, fused)

    figures = []
    for params in banks:
        scores = by_guides + params.weight * tops(params.neighbours, params.top_share)
        auroc = shared.image_auroc(rows, scores)
        figures.append([auroc, *pixels(params.neighbours, params.weight)])
    return np.array(figures)


def _distances(
    store: FeatureStore, bank: MemoryBank, images: np.ndarray, device: str
) -> dict[str, Tensor]:
    """Layer → (n, h, w) of images (n,)."""
    parts = []
    for start in range(0, len(images), _BATCH):
        rows = images[start : start + _BATCH]
        tokens = {layer: image_tokens(store, layer, rows).to(device) for layer in bank.grids}
        parts.append(bank.distances(tokens).patches)
    return {layer: torch.cat([part[layer] for part in parts]) for layer in bank.grids}
