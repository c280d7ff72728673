"""One pass over stores that measures codes on all patch tokens: `Activity` of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.decision.maps import one_thread
from spg_pipe.errors import SpgError
from spg_pipe.explain.activity import Activity, Batch, Coded, rebuilt_sums
from spg_pipe.explain.codes import Active, Code, decoded
from spg_pipe.explain.groups import GROUPS, full_name, image_groups
from spg_pipe.explain.histograms import BINS, EVEN_BINS, Bins
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import TokenSource, in_order
from spg_pipe.store.stream import labelled_images, ordered_batches

_IMAGES = 4
_SAMPLE = 64
"""Images of a store, evenly spread, that the bins are chosen from."""

Progress = Callable[[int, int], None]


class Rebuild(NamedTuple):
    """What a dictionary rebuilds of tokens."""

    atoms: Tensor
    """(C, D)"""
    inputs: Callable[[Tensor], Tensor]
    """Tokens (n, D) → what it was taught to rebuild, (n, D)."""


@dataclass(frozen=True)
class Measure:
    """What is to be measured of a layer's patch tokens."""

    layer: str
    code: Code
    latents: int
    """C: the code's latents are 0 … C − 1."""
    dense: bool = False
    """Of `projection_code`: values of any sign, counted in evenly spaced bins."""
    rebuild: Rebuild | None = None
    """Also measure how well the entries rebuild the tokens."""


def measure(
    stores: Sequence[FeatureStore],
    measures: Sequence[Measure],
    *,
    beside: Callable[[Batch], None] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Activity]:
    """Measure codes on all patch tokens, in one pass over the stores.

    An `SpgError` if a store lacks a layer, or the counts would take too much memory.

    `beside` is shown every batch with the tokens of all layers, `progress` images done and in all.
    """
    categories = tuple(sorted({name for of_store in category_names(stores) for name in of_store}))
    _require_memory(measures, len(categories))
    sources = [_sources(store, measures, device, every=beside is not None) for store in stores]
    done, in_all, threads = 0, sum(map(len, stores)), torch.get_num_threads()
    # Batches side by side: one is too small to be shared among threads.
    with torch.inference_mode(), one_thread(), ThreadPoolExecutor(threads) as pool:
        measured = []
        for asked in measures:
            plan = tuple(
                (number, key.name)
                for number, store in enumerate(stores)
                for key in store.spec.backbone.token_keys
                if key.layer == asked.layer
            )
            own = [sources[number][name] for number, name in plan]
            measured.append(Activity(categories, plan, _bins(own, asked), own[0].dim))

        @torch.inference_mode()
        def coded(batch: Batch) -> tuple[Batch, list[list[Coded]]]:
            pairs = zip(measures, measured, strict=True)
            return batch, [_coded(asked, activity.sources, batch) for asked, activity in pairs]

        batches = _batches(stores, sources, categories)
        for batch, of_measures in in_order(pool, coded, batches, ahead=threads + 1):
            for activity, found in zip(measured, of_measures, strict=True):
                for each in found:
                    activity.add(batch, each)
            if beside:
                beside(batch)
            done += len(batch.images)
            if progress:
                progress(done, in_all)
    return measured


def _require_memory(measures: Sequence[Measure], categories: int) -> None:
    """Refuse, with an `SpgError`, counts that take more than half of the memory that is free."""
    import psutil

    bins = sum(each.latents * (EVEN_BINS if each.dense else BINS) for each in measures)
    needed, free = 8 * categories * GROUPS * bins, psutil.virtual_memory().available
    if needed > free / 2:
        raise SpgError(
            f"The counts of {categories} categories would take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free, half of which may be used. Describe fewer "
            "sets: name some with --split."
        )


def _coded(asked: Measure, plan: Sequence[tuple[int, str]], batch: Batch) -> list[Coded]:
    """The work on a batch that needs no other."""
    found = []
    for source, (store, name) in enumerate(plan):
        if store == batch.store:
            patches = batch.tokens[name][:, 1:]
            x = patches.flatten(0, 1)
            entries = asked.code(x)
            sums: tuple[Tensor, ...] = ()
            if asked.rebuild is not None:
                atoms, inputs = asked.rebuild
                x_hat = decoded(entries, atoms, len(x)).view(patches.shape)
                sums = rebuilt_sums(inputs(x).view(patches.shape), x_hat)
            found.append(Coded(source, Active(*(part.cpu() for part in entries)), sums))
    return found


def _batches(
    stores: Sequence[FeatureStore],
    sources: Sequence[Mapping[str, TokenSource]],
    categories: Sequence[str],
) -> Iterator[Batch]:
    """All images of all stores."""
    for number, (store, names) in enumerate(zip(stores, category_names(stores), strict=True)):
        rows = np.array([categories.index(name) for name in names])
        groups = image_groups(store)
        known = np.isin(np.arange(len(store)), labelled_images(store))
        for images, tokens in ordered_batches(dict(sources[number]), _IMAGES):
            shares = _shares(store, images, known[images], tokens)
            of_images = images, rows[images], groups[images], known[images]
            yield Batch(number, *of_images, tokens, shares)


def _sources(
    store: FeatureStore, measures: Sequence[Measure], device: str, *, every: bool
) -> dict[str, TokenSource]:
    """The tokens that are needed of a store, by name."""
    keys, wanted = store.spec.backbone.token_keys, {asked.layer for asked in measures}
    if missing := wanted - {key.layer for key in keys}:
        raise SpgError(
            f"{store.path} has no tokens of layer {', '.join(sorted(missing))}. Run `spg-pipe "
            "extract` with these layers."
        )
    names = [key.name for key in keys if every or key.layer in wanted]
    return {name: TokenSource(store, name, device=device, cache="none") for name in names}


def category_names(stores: Sequence[FeatureStore]) -> list[list[str]]:
    """Category of every image of each store; of several stores with the dataset's name in front."""
    return [
        [
            full_name(store.spec.dataset, category, alone=len(stores) == 1)
            for category in store.array("category").tolist()
        ]
        for store in stores
    ]


def _shares(
    store: FeatureStore, images: np.ndarray, known: np.ndarray, names: Iterable[str]
) -> dict[str, Tensor]:
    """`Batch.shares`"""
    masks = torch.from_numpy(store.masks(images)).float()[:, None]
    masks *= torch.from_numpy(known)[:, None, None, None]
    of_grids = {
        grid: F.adaptive_avg_pool2d(masks, grid).flatten(1)
        for grid in {store.spec.layers[name].grid for name in names}
    }
    return {name: of_grids[store.spec.layers[name].grid] for name in names}


def _bins(sources: Sequence[TokenSource], asked: Measure) -> Bins:
    """Bins that fit what is seen in some images of every store."""

    def tokens() -> Iterator[Tensor]:
        for source in sources:
            count = len(source.store)
            images = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int))
            for batch in source.take(np.array_split(images, -(-len(images) // _IMAGES))):
                yield batch.flatten(0, 1).float()

    return bins_of(tokens(), asked.code, asked.latents, dense=asked.dense)


def bins_of(tokens: Iterable[Tensor], code: Code, latents: int, *, dense: bool = False) -> Bins:
    """Bins that fit what a code gives of batches of tokens (n, D); `dense` as of `Measure`."""
    ends = [torch.full((latents,), sign * torch.inf) for sign in (1, -1)]
    for batch in tokens:
        entries = code(batch)
        for end, way in zip(ends, ("amin", "amax"), strict=True):
            end.scatter_reduce_(0, entries.latent.cpu(), entries.value.cpu(), way)
    smallest, largest = (end.masked_fill(end.isinf(), torch.nan) for end in ends)
    return Bins.of(smallest, largest, logarithmic=not dense)
