"""Perlin's gradient noise, a plane at a time."""

from __future__ import annotations

import numpy as np


def perlin(shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise between random gradients on a lattice (Perlin, "Improving noise", 2002).

    Parameters
    ----------
    shape
        Height and width in pixels.
    cells
        Lattice cells along each axis: how many hills and valleys there are.

    Returns
    -------
    ndarray, (H, W)
        float64 in [-1, 1], 0 at the lattice's corners.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    gradients = np.sin(angles), np.cos(angles)
    y, x = (np.arange(n) * (c / n) for n, c in zip(shape, cells, strict=True))
    row, column = y.astype(int), x.astype(int)
    along, across = (y - row)[:, None], (x - column)[None, :]

    def corner(down: int, right: int) -> np.ndarray:
        at = np.ix_(row + down, column + right)
        return gradients[0][at] * (along - down) + gradients[1][at] * (across - right)

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (along, across))
    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    return np.asarray(np.sqrt(2) * (top * (1 - fade_y) + bottom * fade_y))
