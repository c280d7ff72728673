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
from spg_pipe.study.baselines.patchwise import Method

IMAGES = 16
"""Others that each image is compared with, drawn once: cost grows with images × these."""
SHARE = 0.3
"""Of those, the nearest, whose mean distance counts: the others may be defective, too."""


def mutual_scoring(store: FeatureStore, seed: int, images: int = IMAGES) -> Method:
    """Mean distance of a patch to the nearest patch of each of the nearest other images.

    Parameters
    ----------
    store : FeatureStore
        The target itself; its labels are not read.
    seed : int
        Of the draw of reference images.
    """
    drawn = np.random.default_rng(seed).permutation(len(store))[: images + 1]
    banks = {
        layer: unit(torch.from_numpy(store.tokens(layer, np.sort(drawn))).float())
        for layer in store.layers
    }
    place = {int(image): number for number, image in enumerate(np.sort(drawn))}

    def values(tokens: dict[TokenKey, Tensor], rows: np.ndarray) -> dict[TokenKey, Tensor]:
        found = {}
        for key, batch in tokens.items():
            each = []
            for image, patches in zip(rows.tolist(), unit(batch[:, 1:]), strict=True):
                others = [n for n in range(len(drawn)) if n != place.get(image)][:images]
                bank = banks[key.name][others].to(batch.device)
                near = 1 - (bank.flatten(0, 1) @ patches.t()).unflatten(0, (len(others), -1)).amax(
                    1
                )
                count = max(1, int(SHARE * len(others)))
                each.append(near.topk(count, dim=0, largest=False)[0].mean(dim=0))
            found[key] = torch.stack(each)
        return found

    return Method("mutual scoring", transductive(store, images), values, seed=seed)


def transductive(store: FeatureStore, images: int = IMAGES) -> str:
    """What it was allowed to see."""
    return f"transductive: the target's {len(store)} images, unlabelled ({images} at a time)"
