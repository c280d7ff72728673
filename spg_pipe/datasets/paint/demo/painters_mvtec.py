"""The defects of the set in MVTec AD's layout: lint, scratches, spatter.

A painter takes a window of the image and a random generator and returns the defect's appearance
and its coverage; `samples` puts them together and derives the mask.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from spg_pipe.datasets.paint.demo.shapes import Canvas, Paint, blob, cover, noise, rotated_grid


def lint(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Contamination: a tuft of curled light and dark fibres."""
    size, strands, steps = canvas.size, 24, 220
    bend = rng.normal(0, 0.02, (strands, 1))
    turn = np.cumsum(rng.normal(0, 0.004, (strands, steps)), axis=1) + bend
    heading = rng.uniform(0, 2 * np.pi, (strands, 1)) + np.cumsum(turn, axis=1)
    y = rng.uniform(0, size, (strands, 1)) + np.cumsum(np.sin(heading), axis=1)
    x = rng.uniform(0, size, (strands, 1)) + np.cumsum(np.cos(heading), axis=1)
    shade = np.repeat(rng.choice([-1.0, 1.0], (strands, 1)), steps, axis=1)
    row, column = np.rint(y).astype(int), np.rint(x).astype(int)
    on = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    drawn = np.zeros((size, size))
    drawn[row[on], column[on]] = shade[on]
    return cover(canvas, blob(size, rng), ndimage.gaussian_filter(drawn, 1.1))


def scratches(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Abrasion: a rubbed spot with fine straight scratches in much the same direction."""
    size, angle = canvas.size, rng.uniform(0, np.pi)
    relief = np.zeros((size, size))
    for _ in range(26):
        along, across = rotated_grid(size, angle + rng.normal(0, 0.12))
        line = np.exp(-(((across - rng.uniform(-0.4, 0.4) * size) / 1.1) ** 2))
        half_length = rng.uniform(0.1, 0.25) * size
        within = np.abs(along - rng.uniform(-0.3, 0.3) * size) < half_length
        relief += rng.choice([-1.0, 1.0]) * line * within
    return cover(canvas, blob(size, rng), relief)


def spatter(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Paint: small dark splashes that flew in one direction."""
    size = canvas.size
    _, across = rotated_grid(size, rng.uniform(0, np.pi))
    lanes = np.abs(across / 14 - np.floor(across / 14) - 0.5) < 0.33
    splashes = ((noise(size, 2.2, rng) > 0.3) & lanes).astype(float)
    return cover(canvas, blob(size, rng), -ndimage.gaussian_filter(splashes, 0.8))


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], Paint]] = {
    "lint": lint,
    "scratches": scratches,
    "spatter": spatter,
}
