"""Normal images, read once: which of them differ, and the patches that a bank may keep.

Shapes: n different normal images, N patches an image, p ≤ N of them that are kept, D token width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import LABEL_ANOMALOUS
from spg_pipe.decision.kept import Kept, patch_shares
from spg_pipe.errors import UnsuitableError
from spg_pipe.guides.model import unit
from spg_pipe.images.samples import FULL
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.stream import image_tokens

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = 100_000
"""Patches of a layer that are held: of more, each image gives the same number, by chance."""
SAME = 1e-4
"""An image whose mean token is nearer than this, relative to its length, is the same image. In
other batches a mean moves by less than a tenth of it; by an eighth if the tokens of one side,
hundreds an image, are rounded to float16. Another photograph of the same scene, in many tiles, can
be as near as eight times it."""
KNOWN = "among_normals"
"""Column of scores: the image is one of the bank's own, so that it has no distance to it."""
BATCH = 4
"""Images, or tiles of images, that are read at a time."""

Tokens = dict[str, Tensor]
Grids = dict[str, tuple[int, int]]
TokensOf = Callable[[np.ndarray], tuple[Tokens, Grids]]
"""Numbers of images (k,) → layer → (k, 1 + N, D) float32, CLS first, and layer → (h, w)."""
KeptOf = Callable[[np.ndarray], Kept | None]
"""Numbers of images (k,) → which of their pixels count."""
Progress = Callable[[int, int], None]


def all_counts(images: np.ndarray) -> None:
    """All pixels of all images."""


class NormalPatches(NamedTuple):
    """What was read of normal images."""

    images: np.ndarray
    """(n,) numbers of those that differ: of copies the first."""
    means: Tensor
    """(n, D) mean patch tokens of the first layer."""
    patches: Tokens
    """Layer → (n·p, D) unit tokens, image after image."""
    grids: Grids
    given: int
    """How many there were, copies included."""
    kept_of: KeptOf
    """By the numbers in `images`."""

    def kept(self, images: np.ndarray) -> Kept | None:
        """Which pixels count of images with these places among `images`."""
        return self.kept_of(self.images[images])

    def rows_of(self, layer: str, image: int) -> slice:
        """Where the patches of the image with this place among `images` are."""
        share = len(self.patches[layer]) // len(self.images)
        return slice(image * share, (image + 1) * share)

    def whole(self, tokens_of: TokensOf, image: int) -> Tokens:
        """Layer → (N, D) unit tokens of one image; read again if only a part was kept."""
        held = {name: self.patches[name][self.rows_of(name, image)] for name in self.grids}
        if all(len(held[name]) == rows * columns for name, (rows, columns) in self.grids.items()):
            return held
        tokens, _ = tokens_of(self.images[image : image + 1])
        return {name: unit(values[0, 1:].float().cpu()) for name, values in tokens.items()}


def are_among(means: Tensor, known: Tensor) -> np.ndarray:
    """Which images are, by their mean tokens, the same as one of n ≥ 0 others: (B,) bool.

    `means` (B, D) and `known` (n, D) are float32.
    """
    if not len(known):
        return np.zeros(len(means), bool)
    exact = "donot_use_mm_for_euclid_dist"
    away = torch.cdist(means, known, compute_mode=exact).amin(dim=1)
    return (away <= SAME * means.norm(dim=1)).numpy()


def mean_tokens(store: FeatureStore, rows: np.ndarray) -> Tensor:
    """(n, D) float32: means over the patch tokens of the first layer of some images (n,)."""
    step = batch_of(store)
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    layer = store.layers[0]
    return torch.cat([_means(image_tokens(store, layer, part)) for part in parts])


def different_images(store: FeatureStore, rows: np.ndarray) -> np.ndarray:
    """Of some images (n,) of a store those that are no copy of one before: (k,) int64, in order."""
    means, chosen = mean_tokens(store, rows), list[int]()
    for number in range(len(rows)):
        if not are_among(means[number : number + 1], means[chosen])[0]:
            chosen.append(number)
    return rows[chosen]


def batch_of(store: FeatureStore) -> int:
    """Images of a store that are read at a time."""
    return max(1, BATCH // store.spec.backbone.inputs_per_image)


def tokens_of_store(store: FeatureStore, rows: np.ndarray) -> TokensOf:
    """Of some images (n,) of a store, by their numbers among these."""
    grids: Grids = {layer: store.spec.layers[layer].grid for layer in store.layers}

    def tokens_of(images: np.ndarray) -> tuple[Tokens, Grids]:
        return {layer: image_tokens(store, layer, rows[images]) for layer in grids}, grids

    return tokens_of


def read_normals(
    tokens_of: TokensOf,
    images: int,
    *,
    kept_of: KeptOf = all_counts,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> NormalPatches:
    """Read all of some normal images and keep what a bank is made of.

    A patch that counts for nothing becomes a token of length 0, to which none is near. `tokens_of`
    is called with at most `batch` of the `images`, copies included, at a time.
    """
    kept, grids, chosen = Tokens(), Grids(), list[int]()
    means, generators = torch.empty(0), dict[str, torch.Generator]()
    for start in range(0, images, batch):
        numbers = np.arange(start, min(start + batch, images))
        (tokens, grids), kept_pixels = tokens_of(numbers), kept_of(numbers)
        found = _means(next(iter(tokens.values())))
        means = means.view(-1, found.shape[1])
        for place, number in enumerate(numbers.tolist()):
            mean = found[place : place + 1]
            if are_among(mean, means)[0]:
                continue
            for layer, values in tokens.items():
                own = unit(values[place, 1:].float().cpu())
                if (counts := patch_shares(kept_pixels, grids[layer])) is not None:
                    own = own * (counts[place, :, None] > 0)
                share = min(len(own), max(1, CANDIDATES // images))
                if layer not in kept:  # in one piece from the start: joining would need it twice
                    kept[layer] = torch.empty(images * share, own.shape[1])
                    generators[layer] = torch.Generator().manual_seed(0)
                if share < len(own):
                    own = own[torch.randperm(len(own), generator=generators[layer])[:share]]
                kept[layer][len(chosen) * share : (len(chosen) + 1) * share] = own
            chosen.append(number)
            means = torch.cat([means, mean])
        if progress:
            progress(int(numbers[-1]) + 1, images)
    patches = {
        layer: values[: len(values) // images * len(chosen)] for layer, values in kept.items()
    }
    return NormalPatches(np.array(chosen, dtype=np.int64), means, patches, grids, images, kept_of)


def _means(tokens: Tensor) -> Tensor:
    """(B, D) on the CPU, of (B, 1 + N, D)."""
    return tokens[:, 1:].float().mean(dim=1).cpu()


def require_alike(
    table: "pd.DataFrame", white: int | None, source: Path | str, target: FeatureStore
) -> None:
    """Refuse, with an `UnsuitableError`, by a manifest's columns and `white`: anomalous images, or
    another white than the target's, by which the same part would have other grey levels."""
    anomalous = table["path"][table["label"] == LABEL_ANOMALOUS].tolist()
    if anomalous:
        raise UnsuitableError(
            f"{source} has {len(anomalous)} anomalous images (the first: {anomalous[0]}); a bank "
            "is made of normal ones alone. Name a split or a folder of normal images."
        )
    if white != target.spec.white:
        raise UnsuitableError(
            f"White is {white or f'{FULL} or what each file says'} in the normal images of "
            f"{source}, and {target.spec.white or f'{FULL} or what each file says'} in "
            f"{target.path}: where 16-bit files do not say it, the "
            "highest value of their whole dataset decides. Take normal images of the target's own "
            f"dataset (NAME/train), or save both with white at {FULL} and extract them again."
        )
