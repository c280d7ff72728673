"""How near batches come to a shuffle of all tokens, for some windows.

    python -m benchmarks.mixing

No store is needed: the order depends on the number of images, their categories and the seed alone.
"""

from typing import NamedTuple

import numpy as np

from spg_pipe.store.stream import epoch_order, token_order, windows

CATEGORIES = np.repeat([f"category {number:02d}" for number in range(15)], 115)
PATCHES, BATCH_TOKENS = 784, 8192
_BATCHES = 64
"""Batches that are measured, from the epoch's start: enough for means of two digits."""


class Mixing(NamedTuple):
    """How near batches come to a shuffle of all tokens.

    Means over the batches of an epoch, each beside what a shuffle of all tokens gives.
    """

    images: float
    """Distinct images a batch."""
    images_expected: float
    effective_images: float
    """1 / Σ pᵢ², with pᵢ the share of the batch's tokens that image i gave: how many images would,
    with equal shares, average as well."""
    effective_images_expected: float
    categories: float
    """Distinct categories a batch."""
    categories_expected: float


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
        batches = _whole_images(len(codes), patches, batch_images, seed)
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


def _whole_images(images: int, patches: int, batch_images: int, seed: int) -> list[np.ndarray]:
    order = epoch_order(np.arange(images), seed, 0)
    starts = range(0, images, batch_images)[:_BATCHES]
    return [np.repeat(order[start : start + batch_images], patches) for start in starts]


def _tokens(
    images: int, patches: int, batch_tokens: int, window_images: int, seed: int
) -> list[np.ndarray]:
    owners = np.empty(0, np.int64)
    for number, window in enumerate(windows(np.arange(images), seed, 0, window_images)):
        order = token_order(len(window) * patches, seed, 0, number)
        owners = np.concatenate([owners, window[order // patches]])
        if len(owners) >= _BATCHES * batch_tokens:
            break
    # A short last batch would be compared with what a full one holds.
    full = max(1, min(_BATCHES, len(owners) // batch_tokens))
    return [owners[i * batch_tokens : (i + 1) * batch_tokens] for i in range(full)]


def _line(name: str, found: Mixing) -> str:
    return (
        f"| {name} | {found.images:.0f} of {found.images_expected:,.0f} "
        f"| {found.effective_images:.0f} of {found.effective_images_expected:,.0f} "
        f"| {found.categories:.1f} of {found.categories_expected:.1f} |"
    )


def main() -> None:
    """Print the table."""
    print("| batches | distinct images | effective images | categories |\n|---|---|---|---|")
    base = {"window_images": 1, "seed": 111}
    whole = measure_mixing(CATEGORIES, PATCHES, batch_tokens=None, batch_images=16, **base)
    print(_line("16 whole images", whole))
    for window in (32, 96, 512, len(CATEGORIES)):
        found = measure_mixing(
            CATEGORIES,
            PATCHES,
            batch_tokens=BATCH_TOKENS,
            batch_images=None,
            **(base | {"window_images": window}),
        )
        print(_line(f"window {window}", found))


if __name__ == "__main__":
    main()
