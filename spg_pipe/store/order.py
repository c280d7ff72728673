"""Which images come when: seeded orders and windows. No token is read here."""

from dataclasses import dataclass

import numpy as np


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
