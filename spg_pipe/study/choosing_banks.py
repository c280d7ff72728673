"""Settings of a memory bank, judged on the auxiliary set alone.

Its categories stand for targets: some normal images of a category make the bank, guides and
decision are made without its part of the set, and the rest of that part is judged by both.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from spg_pipe.bank.images import different_images
from spg_pipe.bank.memory import MemoryBank
from spg_pipe.decision.fit import grids_of, image_values
from spg_pipe.decision.model import Decision
from spg_pipe.errors import UnsuitableError
from spg_pipe.recipe.params import BankParams
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens
from spg_pipe.study.choosing import (
    Candidate,
    CategoryResult,
    Judgement,
    Looked,
    Progress,
    judge_images,
    judge_pixels,
    look_at_parts,
    part_result,
)

_BATCH = 16


def judge_banks(
    store: FeatureStore,
    one: Candidate,
    banks: Sequence[BankParams],
    *,
    normals: int,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Judgement]:
    """Judge every setting of a bank on every held-out part.

    Parameters
    ----------
    store : FeatureStore
        The auxiliary set.
    one : Candidate
        How guides and decision are made.
    normals : int
        Normal images of a bank. A category with fewer than one more in a part is left out of it.
    seed : int
        Of the draw of these images.
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
    shared = look_at_parts(store, [one], device)
    each: list[list[CategoryResult]]
    found: dict[str, list[list[CategoryResult]]] = {}
    for number, part in enumerate(shared.parts):
        decision, which = shared.decide(one, part)
        each = [
            _category(store, shared, decision, which, rows, drawn, banks, device)
            for rows, drawn in _targets(store, shared, part, normals, seed)
        ]
        if each:
            found[part] = each
        if progress:
            progress(number + 1, len(shared.parts))
    if not found:
        raise UnsuitableError(
            f"No part of {store.path} has a category with more than {normals} normal images, so "
            "no setting of a bank can be judged on it. Choose with fewer --normals, or on another "
            "auxiliary set."
        )
    return [
        Judgement(
            tuple(part_result(part, [one[n] for one in each]) for part, each in found.items())
        )
        for n in range(len(banks))
    ]


def _targets(
    store: FeatureStore, shared: Looked, part: str, normals: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each category that can stand for a target: (n,) bool to judge, and the bank's rows."""
    for own in shared.categories(part):
        normal = np.flatnonzero(own & (shared.images.labels == 0))
        if len(normal) > normals:
            rng = np.random.default_rng([seed, int(normal[0])])
            first = rng.choice(normal, normals, replace=False)
            others = rng.permutation(np.setdiff1d(normal, first))  # in the place of copies
            drawn = np.sort(different_images(store, np.concatenate([first, others]), normals))
            if len(drawn) == normals:
                rows = own.copy()
                rows[drawn] = False
                yield rows, drawn


def _category(
    store: FeatureStore,
    shared: Looked,
    decision: Decision,
    which: int,
    rows: np.ndarray,
    drawn: np.ndarray,
    banks: Sequence[BankParams],
    device: str,
) -> list[CategoryResult]:
    """A result a setting; those that differ in weight and share alone have the same distances."""
    values = image_values(decision, shared.seen, which, shared.images.size, rows)
    guides = np.sum(list(decision.shares(values).values()), axis=0)
    place = {image: number for number, image in enumerate(np.flatnonzero(rows).tolist())}
    results: dict[int, CategoryResult] = {}
    order = sorted(range(len(banks)), key=lambda n: banks[n].neighbours)
    for _, same in groupby(order, key=lambda n: banks[n].neighbours):
        numbers = list(same)
        bank = MemoryBank.of_store(store, drawn, banks[numbers[0]], device=device)
        patches = _distances(store, bank, np.flatnonzero(rows), device)
        tops = {
            share: bank.with_top_share(share).tops(patches)
            for share in {banks[n].top_share for n in numbers}
        }
        pixels = {
            weight: judge_pixels(
                shared,
                rows,
                partial(_fused, shared, decision, which, place, patches, weight),
            )
            for weight in {banks[n].weight for n in numbers}
        }
        for n in numbers:
            total = guides + banks[n].weight * tops[banks[n].top_share]
            auroc = judge_images(shared.images, rows, total)
            results[n] = (auroc, *pixels[banks[n].weight])
    return [results[n] for n in range(len(banks))]


def _fused(
    shared: Looked,
    decision: Decision,
    which: int,
    place: dict[int, int],
    patches: dict[str, Tensor],
    weight: float,
    image: np.ndarray,
) -> dict[str, Tensor]:
    """Layer → (1, h, w): log odds of an image (1,), the bank's distances added."""
    at = place[int(image[0])]
    return {
        layer: odds + weight * patches[layer][at : at + 1]
        for layer, odds in grids_of(decision, shared.seen, which, image).items()
    }


def _distances(
    store: FeatureStore, bank: MemoryBank, images: np.ndarray, device: str
) -> dict[str, Tensor]:
    """Layer → (n, h, w) of images (n,)."""
    found: dict[str, list[Tensor]] = {layer: [] for layer in bank.grids}
    for start in range(0, len(images), _BATCH):
        rows = images[start : start + _BATCH]
        tokens = {layer: image_tokens(store, layer, rows).to(device) for layer in bank.grids}
        for layer, values in bank.distances(tokens).patches.items():
            found[layer].append(values)
    return {layer: torch.cat(values) for layer, values in found.items()}
