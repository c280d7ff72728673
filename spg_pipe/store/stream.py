"""Batches from a store, in a seeded order (docs/store.md, "Streaming to a trainer")."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.store.reader import FeatureStore

_WINDOW_IMAGES = 256


@dataclass(frozen=True)
class ImageBatch:
    """Whole images with everything that guide training needs."""

    images: np.ndarray
    """(B,) rows in the store."""
    tokens: dict[str, Tensor]
    """Layer → (B, 1 + N, D) float32; token 0 is CLS."""
    labels: Tensor
    """(B,) int64."""
    masks: Tensor
    """(B, S, S) float32 in {0, 1}."""


def epoch_order(images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation of image rows that depends on the seed and the epoch alone."""
    return images[np.random.default_rng([seed, epoch]).permutation(len(images))]


def labelled_images(store: FeatureStore) -> np.ndarray:
    """Rows that can teach: a known label, and a mask unless the image is normal."""
    known = store.array("label") != 255
    return np.flatnonzero(known & (store.array("mask_state") != MaskState.MISSING))


def image_tokens(store: FeatureStore, layer: str, images: np.ndarray) -> Tensor:
    """CLS and patch tokens (B, 1 + N, D) float32 of some images."""
    patches = store.tokens(layer, images)
    cls = store.cls(layer, images)[:, None, :]
    return torch.from_numpy(np.concatenate([cls, patches], axis=1).astype(np.float32))


def image_batches(
    store: FeatureStore, batch_images: int, *, seed: int, epoch: int
) -> Iterator[ImageBatch]:
    """Shuffled batches of labelled images; the short last batch is kept."""
    order = epoch_order(labelled_images(store), seed, epoch)
    labels = store.array("label")
    for start in range(0, len(order), batch_images):
        images = order[start : start + batch_images]
        yield ImageBatch(
            images=images,
            tokens={layer: image_tokens(store, layer, images) for layer in store.layers},
            labels=torch.from_numpy(labels[images].astype(np.int64)),
            masks=torch.from_numpy(store.masks(images)).float(),
        )


def ordered_batches(store: FeatureStore, batch_images: int) -> Iterator[np.ndarray]:
    """Image rows in the store's order."""
    for start in range(0, len(store), batch_images):
        yield np.arange(start, min(start + batch_images, len(store)))


def token_batches(
    store: FeatureStore,
    layer: str,
    *,
    seed: int,
    epoch: int,
    batch_images: int | None = None,
    batch_tokens: int | None = None,
) -> Iterator[Tensor]:
    """Patch tokens (n, D) float32 for the SAE; all images, CLS excluded.

    Parameters
    ----------
    batch_images : int, optional
        Whole images a batch, as published.
    batch_tokens : int, optional
        Shuffled tokens a batch instead: tokens are mixed within windows of 256 random images.
    """
    order = epoch_order(np.arange(len(store)), seed, epoch)
    if batch_images is not None:
        for start in range(0, len(order), batch_images):
            yield _flat(store.tokens(layer, order[start : start + batch_images]))
        return
    if batch_tokens is None:
        raise ValueError("token_batches needs batch_images or batch_tokens")
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    rest: Tensor | None = None
    for start in range(0, len(order), _WINDOW_IMAGES):
        window = _flat(store.tokens(layer, order[start : start + _WINDOW_IMAGES]))
        window = window[torch.randperm(len(window), generator=generator)]
        pool = window if rest is None else torch.cat([rest, window])
        full = len(pool) - len(pool) % batch_tokens
        if full:
            yield from pool[:full].split(batch_tokens)
        rest = pool[full:].clone()
    if rest is not None and len(rest):
        yield rest


def _flat(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens.reshape(-1, tokens.shape[-1])).float()
