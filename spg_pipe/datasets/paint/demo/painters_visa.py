"""The defects of the set in VisA's layout: blisters, crackle, tidemark.

The interface is that of `painters_mvtec`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from spg_pipe.datasets.paint.demo.shapes import Canvas, Paint, blob, cover, noise


def blisters(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Bubbles under a coat: small domes, lit from one side."""
    size = canvas.size
    relief = 0.05 * noise(size, 1.0, rng)
    for _ in range(120):
        radius = rng.uniform(3.5, 9.5)
        centre = rng.uniform(0, size, 2)
        top, left = np.maximum(0, centre - radius).astype(int)
        rows, columns = slice(top, top + 21), slice(left, left + 21)
        y, x = np.mgrid[rows, columns]
        y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
        part = relief[rows, columns]
        y, x = y[: part.shape[0], : part.shape[1]], x[: part.shape[0], : part.shape[1]]
        shading = -0.7 * (y + x) + 1.2 * (np.hypot(y + 0.4, x + 0.4) < 0.25)
        part[...] = np.where(np.hypot(y, x) < 1, shading, part)
    return cover(canvas, blob(size, rng), relief)


def crackle(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """A dried film: plates of slightly different brightness between fine dark cracks."""
    size, plate = canvas.size, 22
    seeds = rng.uniform(-plate, size + plate, (int((size / plate + 2) ** 2), 2))
    y, x = np.mgrid[:size, :size]
    where = np.stack([y + 3 * noise(size, 5, rng), x + 3 * noise(size, 5, rng)], axis=-1)
    distance, nearest = cKDTree(seeds).query(where.reshape(-1, 2), k=2)
    gap = (distance[:, 1] - distance[:, 0]).reshape(size, size)
    shade = rng.normal(0, 0.08, len(seeds))[nearest[:, 0]].reshape(size, size)
    relief = ndimage.gaussian_filter(shade, 0.7) - np.exp(-((gap / 2.2) ** 2))
    return cover(canvas, blob(size, rng), relief + 0.03 * noise(size, 1.0, rng))


def tidemark(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """A dried liquid: the bright winding rims that it left."""
    level = noise(canvas.size, 7, rng)
    return cover(canvas, blob(canvas.size, rng), np.exp(-(((level - 0.3) / 0.18) ** 2)))


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], Paint]] = {
    "blisters": blisters,
    "crackle": crackle,
    "tidemark": tidemark,
}
