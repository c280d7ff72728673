"""Which images come when: seeded orders and windows, and how well they mix images.

No token is read here.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import PlainSerializer

from spg_pipe.artefacts.record import Record

_BATCHES = 64
"""Batches whose mixing is measured, from the epoch's start: enough for means of two digits."""


def epoch_order(images: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation (n,) of image rows (n,) that depends on its arguments alone."""
    return images[np.random.default_rng([seed, epoch]).permutation(len(images))]


@dataclass(frozen=True)
class Window:
    """Images whose tokens are shuffled together."""

    images: np.ndarray
    """(n,) rows in the store."""
    seed: tuple[int, int, int]
    """Seed, epoch and number of the window: of the permutation of its tokens."""

    def permutation(self, tokens: int) -> np.ndarray:
        """An order of the window's tokens, (tokens,) int64, the same on every device."""
        return np.random.default_rng(self.seed).permutation(tokens)


def windows(images: np.ndarray, seed: int, epoch: int, window_images: int) -> list[Window]:
    """An epoch as windows of shuffled images; the last may be short."""
    order = epoch_order(images, seed, epoch)
    return [
        Window(order[start : start + window_images], (seed, epoch, number))
        for number, start in enumerate(range(0, len(order), window_images))
    ]


_Mean = Annotated[float, PlainSerializer(lambda value: float(f"{value:.4g}"), when_used="json")]


class Mixing(Record):
    """How near an SAE's batches come to a shuffle of all tokens.

    Means over the batches of an epoch, each beside what a shuffle of all tokens gives; JSON has
    four digits of them.
    """

    images: _Mean
    """Distinct images a batch."""
    images_expected: _Mean
    effective_images: _Mean
    """1 / Σ pᵢ², with pᵢ the share of the batch's tokens that image i gave: how many images would,
    with equal shares, average as well."""
    effective_images_expected: _Mean
    categories: _Mean
    """Distinct categories a batch."""
    categories_expected: _Mean


def measure_mixing(
    categories: np.ndarray,
    patches: int,
    *,
    batch_tokens: int | None,
    batch_images: int | None,
    window_images: int,
    seed: int,
) -> Mixing:
    """Measure the order of an epoch.

    Parameters
    ----------
    categories : (n,) str
        Of every image, in the store's order.
    patches : int
        N, tokens an image.
    batch_tokens, batch_images, window_images, seed
        As in `stream.token_batches`, of epoch 0.
    """
    codes = np.unique(categories, return_inverse=True)[1]
    if batch_images is not None:
        order = epoch_order(np.arange(len(codes)), seed, 0)
        starts = range(0, len(order), batch_images)[:_BATCHES]
        batches = [np.repeat(order[start : start + batch_images], patches) for start in starts]
    elif batch_tokens is not None:
        batches = _tokens(len(codes), patches, batch_tokens, window_images, seed)
    else:
        raise ValueError("mixing needs batch_images or batch_tokens")
    counts = [np.bincount(batch, minlength=len(codes)) for batch in batches]
    size = float(np.mean([count.sum() for count in counts]))
    total = len(codes) * patches
    chance = (size - 1) / max(1, total - 1)
    return Mixing(
        images=float(np.mean([np.count_nonzero(count) for count in counts])),
        images_expected=len(codes) * _seen(patches, total, size),
        effective_images=1 / float(np.mean([np.sum((c / c.sum()) ** 2) for c in counts])),
        # E Σ pᵢ²: a pair of tokens is one token twice, or two of the (patches - 1) others.
        effective_images_expected=1 / (1 / size + chance / size * (patches - 1)),
        categories=float(np.mean([len(np.unique(codes[count > 0])) for count in counts])),
        categories_expected=float(
            sum(_seen(images * patches, total, size) for images in np.bincount(codes))
        ),
    )


def _seen(members: int, total: int, size: float) -> float:
    """Chance that `size` of `total` tokens, drawn without replacement, hold one of `members`."""
    places = np.arange(members)
    left = np.maximum(total - size - places, 0) / np.maximum(total - places, 1)
    with np.errstate(divide="ignore"):
        return float(1 - np.exp(np.log(left).sum()))


def _tokens(
    images: int, patches: int, batch_tokens: int, window_images: int, seed: int
) -> list[np.ndarray]:
    owners = np.empty(0, np.int64)
    for window in windows(np.arange(images), seed, 0, window_images):
        order = window.permutation(len(window.images) * patches)
        owners = np.concatenate([owners, window.images[order // patches]])
        if len(owners) >= _BATCHES * batch_tokens:
            break
    # A short last batch would be compared with what a full one holds.
    full = max(1, min(_BATCHES, len(owners) // batch_tokens))
    return [owners[i * batch_tokens : (i + 1) * batch_tokens] for i in range(full)]
