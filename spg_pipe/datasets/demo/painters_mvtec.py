"""The defects of the set in MVTec AD's layout: lint, melt, scrape.

A painter takes a window of the image and a random generator and returns the defect's appearance
and its coverage; the writer puts them together and derives the mask.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from spg_pipe.datasets.demo.photographs import sample
from spg_pipe.datasets.demo.shapes import Canvas, Paint, blob, cover, noise, streaks, strip


def lint(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Contamination: a tangle of curled light and dark fibres."""
    size, strands, steps = canvas.size, 60, 220
    turn = np.cumsum(rng.normal(0, 0.004, (strands, steps)), axis=1) + rng.normal(
        0, 0.02, (strands, 1)
    )
    heading = rng.uniform(0, 2 * np.pi, (strands, 1)) + np.cumsum(turn, axis=1)
    y = rng.uniform(0, size, (strands, 1)) + np.cumsum(np.sin(heading), axis=1)
    x = rng.uniform(0, size, (strands, 1)) + np.cumsum(np.cos(heading), axis=1)
    shade = np.repeat(rng.choice([-1.0, 1.0], (strands, 1)), steps, axis=1)
    row, column = np.rint(y).astype(int), np.rint(x).astype(int)
    on = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    drawn = np.zeros((size, size))
    drawn[row[on], column[on]] = shade[on]
    relief = ndimage.gaussian_filter(drawn, 1.1) + 0.02 * noise(size, 1.0, rng)
    return cover(canvas, blob(size, rng), relief)


def melt(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Deformation: the photograph itself, displaced by a turbulent field."""
    size = canvas.size
    y, x = np.mgrid[:size, :size]
    shift = [13 * noise(size, 10, rng) for _ in range(2)]
    return Paint(sample(canvas.pixels, np.stack([y + shift[0], x + shift[1]])), blob(size, rng))


def scrape(canvas: Canvas, rng: np.random.Generator) -> Paint:
    """Abrasion: a bundle of parallel scratches."""
    size, angle = canvas.size, rng.uniform(0, np.pi)
    relief = streaks(size, angle, 1.2, rng) + 0.1 * noise(size, 1.0, rng)
    return cover(canvas, strip(size, angle, rng), relief)


PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], Paint]] = {
    "lint": lint,
    "melt": melt,
    "scrape": scrape,
}
