"""Transductive: the images of the target judge each other, without labels (after MuSc, 2024).

A patch is anomalous if most other images have nothing like it. It sees the whole target set at
once, so it is not zero-shot, and is named so wherever a number of it stands.
"""

import numpy as np
import torch
from torch import Tensor

from spg_pipe.backbones.spec import TokenKey
from spg_pipe.guides.model import unit
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.baselines.patchwise import Baseline

IMAGES = 16
"""Others that each image is compared with, drawn once: cost grows with images × these."""
SHARE = 0.3
"""Of those, the nearest, whose mean distance counts: the others may be defective, too."""


def mutual_scoring(store: FeatureStore, seed: int, images: int = IMAGES) -> Baseline:
    """Mean distance of a patch to the nearest patch of each of the nearest other images.

    Parameters
    ----------
    store : FeatureStore
        The target itself; its labels are not read.
    seed : int
        Of the draw of reference images.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(store))[: images + 1])
    references = {
        layer: unit(torch.from_numpy(store.tokens(layer, drawn)).float()) for layer in store.layers
    }

    def values(key: TokenKey, tokens: Tensor, rows: np.ndarray) -> Tensor:
        each = []
        for image, patches in zip(rows.tolist(), unit(tokens[:, 1:]), strict=True):
            others = np.flatnonzero(drawn != image)[:images]
            reference = references[key.name][others].to(tokens.device)
            products = (reference.flatten(0, 1) @ patches.t()).unflatten(0, (len(others), -1))
            nearest = 1 - products.amax(dim=1)
            count = max(1, int(SHARE * len(others)))
            each.append(nearest.topk(count, dim=0, largest=False)[0].mean(dim=0))
        return torch.stack(each)

    return Baseline("mutual scoring", transductive(store, images), values, seed=seed)


def transductive(store: FeatureStore, images: int = IMAGES) -> str:
    """What it was allowed to see."""
    return f"transductive: the target's {len(store)} images, unlabelled ({images} at a time)"
