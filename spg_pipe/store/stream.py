"""Batches from a store, in a seeded order (docs/store.md, "Streaming to a trainer").

The order depends on the seed, the epoch and the window alone: not on the device, the cache or the
number of threads. Every generator starts at any batch, so that a resumed trainer sees exactly what
is left of an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import LABEL_UNKNOWN, MaskState
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource

WINDOW_IMAGES = 96
"""Images whose tokens are mixed: how near batches come to a global shuffle is in docs/store.md."""


def epoch_order(images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation (n,) of image rows (n,) that depends on its arguments alone."""
    return images[np.random.default_rng([seed, epoch]).permutation(len(images))]


def windows(images: np.ndarray, seed: int, epoch: int, window_images: int) -> list[np.ndarray]:
    """An epoch as windows of shuffled images, whose tokens are mixed; the last may be short."""
    return _slices(epoch_order(images, seed, epoch), window_images)


def token_order(tokens: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """An order (tokens,) of the tokens of the window of this number, the same on every device."""
    return np.random.default_rng([seed, epoch, window]).permutation(tokens)


@dataclass(frozen=True)
class ImageBatch:
    """Whole images with everything that guide training needs, on the device."""

    images: np.ndarray
    """(B,) rows in the store."""
    tokens: dict[str, Tensor]
    """Layer → (B, 1 + N, D) float32; token 0 is CLS."""
    labels: Tensor
    """(B,) int64."""
    masks: Tensor
    """(B, S, S) float32 in {0, 1}."""


def labelled_images(store: FeatureStore) -> np.ndarray:
    """Rows that can teach: a known label, and a mask unless the image is normal."""
    known = store.array("label") != LABEL_UNKNOWN
    return np.flatnonzero(known & (store.array("mask_state") != MaskState.MISSING))


def sources_of(
    store: FeatureStore, device: str = "cpu", cache: str = "auto"
) -> dict[str, TokenSource]:
    """A source for every layer."""
    return {layer: TokenSource(store, layer, device=device, cache=cache) for layer in store.layers}


def image_batches(
    sources: dict[str, TokenSource],
    batch_images: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
) -> Iterator[ImageBatch]:
    """Shuffled batches of labelled images of one store; the short last batch is kept.

    `start`: batches of the epoch to leave out.
    """
    first = next(iter(sources.values()))
    store, device = first.store, first.device
    order = epoch_order(labelled_images(store), seed, epoch)
    jobs = _slices(order, batch_images)[start:]
    labels = store.array("label")
    for images, tokens in _with_cls(sources, jobs):
        yield ImageBatch(
            images=images,
            tokens=tokens,
            labels=torch.from_numpy(labels[images].astype(np.int64)).to(device),
            masks=torch.from_numpy(store.masks(images)).to(device).float(),
        )


def ordered_batches(
    sources: dict[str, TokenSource], batch_images: int, rows: range | None = None
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """All images in the store's order, or these: rows (B,), and layer → (B, 1 + N, D) float32.

    Of tiled images B is smaller, so that a batch takes the memory of `batch_images` others.
    """
    store = next(iter(sources.values())).store
    size = max(1, batch_images // store.spec.backbone.inputs_per_image)
    yield from _with_cls(sources, _slices(np.array(rows or range(len(store))), size))


def token_batches(
    source: TokenSource,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    batch_images: int | None = None,
    batch_tokens: int | None = None,
    window_images: int = WINDOW_IMAGES,
) -> Iterator[Tensor]:
    """Patch tokens (n, D) in the store's dtype for the SAE; all images, CLS excluded.

    Parameters
    ----------
    start : int
        Batches of the epoch to leave out.
    batch_images : int, optional
        Whole images a batch, as published.
    batch_tokens : int, optional
        Shuffled tokens a batch instead, mixed within windows of `window_images` random images.
    """
    everything = np.arange(len(source.store))
    if batch_images is not None:
        order = epoch_order(everything, seed, epoch)
        for tokens in source.take(_slices(order, batch_images)[start:]):
            yield tokens.flatten(0, 1)
        return
    if batch_tokens is None:
        raise ValueError("token_batches needs batch_images or batch_tokens")
    plan = windows(everything, seed, epoch, window_images)
    yield from _mixed(source, plan, (seed, epoch), start * batch_tokens, batch_tokens)


def _mixed(
    source: TokenSource,
    plan: list[np.ndarray],
    seeds: tuple[int, int],
    skip: int,
    batch_tokens: int,
) -> Iterator[Tensor]:
    """Cut the windows' permuted tokens into batches; `seeds`: of the run and of the epoch."""
    shape = (batch_tokens, source.dim)
    fresh = partial(torch.empty, shape, dtype=source.dtype, device=source.device)
    first, offset = divmod(skip, len(plan[0]) * source.patches)
    batch, filled = fresh(), 0
    for window, images in enumerate(source.take(plan[first:]), first):
        tokens = images.flatten(0, 1)
        order = torch.from_numpy(token_order(len(tokens), *seeds, window)).to(source.device)
        while offset < len(order):
            chosen = order[offset : offset + batch_tokens - filled]
            torch.index_select(tokens, 0, chosen, out=batch[filled : filled + len(chosen)])
            offset, filled = offset + len(chosen), filled + len(chosen)
            if filled == batch_tokens:
                yield batch
                batch, filled = fresh(), 0
        offset = 0
    if filled:
        yield batch[:filled]


def image_tokens(store: FeatureStore, layer: str, images: np.ndarray) -> Tensor:
    """CLS and patch tokens (B, 1 + N, D) float32 of some images, on the CPU."""
    patches = torch.from_numpy(store.tokens(layer, images))
    cls = torch.from_numpy(store.cls(layer, images))
    return torch.cat([cls[:, None], patches], dim=1).float()


def _with_cls(
    sources: dict[str, TokenSource], jobs: list[np.ndarray]
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Rows (B,) and layer → (B, 1 + N, D) float32: CLS, then the patches."""
    streams = [source.take(jobs) for source in sources.values()]
    for images, *groups in zip(jobs, *streams, strict=True):
        tokens = {}
        for (layer, source), patches in zip(sources.items(), groups, strict=True):
            shape = (len(images), 1 + source.patches, source.dim)
            both = torch.empty(shape, dtype=torch.float32, device=source.device)
            both[:, 0] = torch.from_numpy(source.store.cls(layer, images)).to(source.device)
            both[:, 1:] = patches
            tokens[layer] = both
        yield images, tokens


def _slices(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
