"""Batches from a store, in a seeded order (docs/store.md, "Streaming to a trainer").

The order depends on the seed, the epoch and the window alone: not on the device, the cache or the
number of threads. Every generator starts at any batch, so that a resumed trainer sees exactly what
is left of an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.store.order import Window, epoch_order, windows
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.recycle import Recycler
from spg_pipe.store.source import TokenSource

WINDOW_IMAGES = 96
"""Images whose tokens are mixed: how near batches come to a global shuffle is in docs/store.md."""


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
    known = store.array("label") != 255
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
    """Shuffled batches of labelled images; the short last batch is kept.

    Parameters
    ----------
    sources : dict of layer → TokenSource
        Of one store.
    start : int
        Batches of the epoch to leave out.
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
    sources: dict[str, TokenSource], batch_images: int
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """All images in the store's order: rows (B,), and layer → (B, 1 + N, D) float32 tokens.

    Of tiled images B is smaller, so that a batch takes the memory of `batch_images` others.
    """
    store = next(iter(sources.values())).store
    size = max(1, batch_images // store.spec.backbone.views)
    yield from _with_cls(sources, _slices(np.arange(len(store)), size))


def token_batches(
    source: TokenSource,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    batch_images: int | None = None,
    batch_tokens: int | None = None,
    window_images: int = WINDOW_IMAGES,
    run_images: int = 1,
) -> Iterator[Tensor]:
    """Patch tokens (n, D) in the store's dtype for the SAE; all images, CLS excluded.

    Parameters
    ----------
    source : TokenSource
        One layer of a store.
    start : int
        Batches of the epoch to leave out.
    batch_images : int, optional
        Whole images a batch, as published.
    batch_tokens : int, optional
        Shuffled tokens a batch instead, mixed within windows of `window_images` random images.
    run_images : int
        Neighbours in the store that enter a window together.
    """
    everything = np.arange(len(source.store))
    if batch_images is not None:
        order, memory = epoch_order(everything, seed, epoch, run_images), Recycler()
        for patches in source.take(_slices(order, batch_images)[start:]):
            out = _room(memory, source, (len(patches), source.dim), source.dtype)
            yield torch.cat(patches.images(), out=out)
        return
    if batch_tokens is None:
        raise ValueError("token_batches needs batch_images or batch_tokens")
    plan = windows(everything, seed, epoch, window_images, run_images)
    yield from _mixed(source, plan, start * batch_tokens, batch_tokens)


def _mixed(
    source: TokenSource, plan: list[Window], skip: int, batch_tokens: int
) -> Iterator[Tensor]:
    """Cut the windows' permuted tokens, one after the other, into batches."""
    memory, shape = Recycler(), (batch_tokens, source.dim)
    per_window = len(plan[0].images) * source.patches
    plan, offset = plan[skip // per_window :], skip % per_window
    batch, filled = _room(memory, source, shape, source.dtype), 0
    for window, patches in zip(plan, source.take([w.images for w in plan]), strict=True):
        order = patches.places(window.permutation(len(patches)))
        while offset < len(order):
            chosen = order[offset : offset + batch_tokens - filled]
            out = batch[filled : filled + len(chosen)]
            torch.index_select(patches.rows, 0, chosen, out=out)
            offset, filled = offset + len(chosen), filled + len(chosen)
            if filled == batch_tokens:
                yield batch
                batch, filled = _room(memory, source, shape, source.dtype), 0
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
    memory = {layer: Recycler() for layer in sources}
    for images, *groups in zip(jobs, *streams, strict=True):
        tokens = {}
        for (layer, source), patches in zip(sources.items(), groups, strict=True):
            shape = (len(images), 1 + source.patches, source.dim)
            tokens[layer] = _room(memory[layer], source, shape, torch.float32)
            tokens[layer][:, 0] = torch.from_numpy(source.store.cls(layer, images)).to(
                source.device
            )
            for place, image in zip(tokens[layer], patches.images(), strict=True):
                place[1:] = image
        yield images, tokens


def _room(
    memory: Recycler, source: TokenSource, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """A tensor to fill on the source's device. CUDA's allocator recycles by itself."""
    if source.device.type == "cpu":
        return memory.empty(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=source.device)


def _slices(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]
