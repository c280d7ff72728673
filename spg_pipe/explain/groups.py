"""Groups of images: what intervals are drawn over, and what ranks and judges apart."""

import numpy as np
import pandas as pd

from spg_pipe.store.reader import FeatureStore

GROUPS = 16
"""Images are dealt over so many groups, whose sums are kept instead of those of each image: memory
does not grow with the images. Of up to so many images in a category a group is an image."""
ENDS = (0.025, 0.975)
"""Of intervals: quantiles of what drawn groups give."""


def drawn(groups: int, *shape: int) -> np.ndarray:
    """(*shape, groups) int: how often each comes if as many are drawn with replacement."""
    return np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), shape)


def image_groups(store: FeatureStore) -> np.ndarray:
    """(n,) int in 0 … GROUPS − 1: each category's images are dealt over all groups, by label.

    Not by kinds of defects: a group would hold some of each, and intervals would be too narrow.
    Copies of an image with painted defects are in one group.
    """
    paths = store.array("path").tolist()
    numbers = pd.factorize(np.array([store.spec.sources.get(path, path) for path in paths]))[0]
    firsts = np.unique(numbers, return_index=True)[1]
    table = store.table.iloc[firsts]
    return deal(table["category"].to_numpy(), table["label"].to_numpy())[numbers]


def full_name(dataset: str, category: str, *, alone: bool) -> str:
    """A category with its dataset's name in front, where there are several datasets."""
    return category if alone or category == dataset else f"{dataset}/{category}"


def deal(categories: np.ndarray, labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """A group in 0 … GROUPS − 1 for each image (n,): by chance, and evenly of each label."""
    groups = np.zeros(len(categories), np.int64)
    by_chance = np.random.default_rng(seed).permutation(len(categories))
    for category in pd.unique(categories):
        own = by_chance[categories[by_chance] == category]
        own = own[np.argsort(labels[own], kind="stable")]
        groups[own] = np.arange(len(own)) % GROUPS
    return groups
