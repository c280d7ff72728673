"""Which images come when: seeded orders and windows, without a byte of data."""

from dataclasses import dataclass

import numpy as np


def epoch_order(images: np.ndarray, seed: int, epoch: int, run_images: int = 1) -> np.ndarray:
    """A permutation of image rows that depends on its arguments alone.

    Parameters
    ----------
    images : (n,) int
        Rows in the store's order.
    run_images : int
        Neighbours that stay together, in their order: longer runs read faster from a disk.

    Returns
    -------
    (n,) int
    """
    generator = np.random.default_rng([seed, epoch])
    runs = -(-len(images) // run_images)
    starts = generator.permutation(runs) * run_images
    places = (starts[:, None] + np.arange(run_images)).ravel()
    return images[places[places < len(images)]]


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


def windows(
    images: np.ndarray, seed: int, epoch: int, window_images: int, run_images: int
) -> list[Window]:
    """An epoch as windows of shuffled runs of images; the last may be short."""
    order = epoch_order(images, seed, epoch, run_images)
    return [
        Window(order[start : start + window_images], (seed, epoch, number))
        for number, start in enumerate(range(0, len(order), window_images))
    ]
