"""Defects of the demo sets: shapes that are drawn in the photograph's own colour and contrast.

A defect must not give itself away by being vivid: whatever is drawn gets the local mean colour of
the photograph, and its local contrast is scaled to about that of the photograph (the benchmark
`demo_contrast` measures how well this hides it).
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from spg_pipe.datasets.paint.canvas import Canvas, Paint, blended, on_image, random_box, turned
from spg_pipe.datasets.paint.photographs import grey

_WINDOW = 0.56
"""Side of the window a defect is painted in, in image sides; the defect fills about half of it."""
_LEAST_CONTRAST = 0.017
"""Of a range of 1: on the smoothest photographs a defect would otherwise be invisible."""
_CONTRAST_SIGMA = 6.0
"""Width in pixels of the neighbourhood that local contrast refers to."""
_COLOUR_SIGMA = (30.0, 30.0, 0.0)
"""Width in pixels of the neighbourhood whose mean colour a defect takes; not across channels."""

Drawing = tuple[np.ndarray, np.ndarray]
"""A defect before it takes the photograph's colour and contrast, twice (W, W) float: how much of it
covers the photograph, in [0, 1], 0 at the window's border; its brightness, on any scale."""


def paint(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put one drawn defect, with the image's local colour and contrast, anywhere on an image.

    From (H, W, 3) float32 in [0, 1] to the same, and (H, W) bool: the pixels that the painter
    touched. All others are equal.
    """
    canvas = Canvas(image)
    size = round(_WINDOW * canvas.side)
    box = random_box(canvas, size, rng)
    alpha, relief = DRAWINGS[kind](size, rng)
    inside = alpha > 0.5
    level = relief - relief[inside].mean()
    contrast = float(_local_contrast(grey(canvas.units())).mean())
    wanted = max(contrast, _LEAST_CONTRAST)
    level = level * (wanted / (_local_contrast(level)[inside].mean() + 1e-6))
    ground = canvas.units(box)
    colour = ndimage.gaussian_filter(ground, _COLOUR_SIGMA, mode="nearest", truncate=2)
    defect = Paint(box, colour + level[..., None], alpha)
    return on_image(canvas, box, np.clip(blended(canvas, defect), 0, 1), alpha > 0)


def lint(size: int, rng: np.random.Generator) -> Drawing:
    """Contamination: a tuft of curled light and dark fibres."""
    strands, steps = 24, 220
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
    return _blob(size, rng), ndimage.gaussian_filter(drawn, 1.1)


def scratches(size: int, rng: np.random.Generator) -> Drawing:
    """Abrasion: a rubbed spot with fine straight scratches in much the same direction."""
    angle = rng.uniform(0, np.pi)
    relief = np.zeros((size, size))
    for _ in range(26):
        along, across = turned((size, size), angle + rng.normal(0, 0.12))
        line = np.exp(-(((across - rng.uniform(-0.4, 0.4) * size) / 1.1) ** 2))
        half_length = rng.uniform(0.1, 0.25) * size
        within = np.abs(along - rng.uniform(-0.3, 0.3) * size) < half_length
        relief += rng.choice([-1.0, 1.0]) * line * within
    return _blob(size, rng), relief


def spatter(size: int, rng: np.random.Generator) -> Drawing:
    """Paint: small dark splashes that flew in one direction."""
    _, across = turned((size, size), rng.uniform(0, np.pi))
    lanes = np.abs(across / 14 - np.floor(across / 14) - 0.5) < 0.33
    splashes = ((_noise(size, 2.2, rng) > 0.3) & lanes).astype(float)
    return _blob(size, rng), -ndimage.gaussian_filter(splashes, 0.8)


def blisters(size: int, rng: np.random.Generator) -> Drawing:
    """Bubbles under a coat: small domes, lit from one side."""
    relief = 0.05 * _noise(size, 1.0, rng)
    for _ in range(120):
        radius = rng.uniform(3.5, 9.5)
        centre = rng.uniform(0, size, 2)
        top, left = np.maximum(0, centre - radius).astype(int)
        part = relief[top : top + 21, left : left + 21]
        y, x = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]]
        y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
        shading = -0.7 * (y + x) + 1.2 * (np.hypot(y + 0.4, x + 0.4) < 0.25)
        part[...] = np.where(np.hypot(y, x) < 1, shading, part)
    return _blob(size, rng), relief


def crackle(size: int, rng: np.random.Generator) -> Drawing:
    """A dried film: plates of slightly different brightness between fine dark cracks."""
    plate = 22
    seeds = rng.uniform(-plate, size + plate, (int((size / plate + 2) ** 2), 2))
    y, x = np.mgrid[:size, :size]
    where = np.stack([y + 3 * _noise(size, 5, rng), x + 3 * _noise(size, 5, rng)], axis=-1)
    distance, nearest = cKDTree(seeds).query(where.reshape(-1, 2), k=2)
    gap = (distance[:, 1] - distance[:, 0]).reshape(size, size)
    shade = rng.normal(0, 0.08, len(seeds))[nearest[:, 0]].reshape(size, size)
    relief = ndimage.gaussian_filter(shade, 0.7) - np.exp(-((gap / 2.2) ** 2))
    return _blob(size, rng), relief + 0.03 * _noise(size, 1.0, rng)


def tidemark(size: int, rng: np.random.Generator) -> Drawing:
    """A dried liquid: the bright winding rims that it left."""
    level = _noise(size, 7, rng)
    return _blob(size, rng), np.exp(-(((level - 0.3) / 0.18) ** 2))


DRAWINGS: dict[str, Callable[[int, np.random.Generator], Drawing]] = {
    draw.__name__: draw for draw in (lint, scratches, spatter, blisters, crackle, tidemark)
}
"""Kind of defect → what draws it in a window of W×W pixels."""


def _local_contrast(plane: np.ndarray) -> np.ndarray:
    """|plane − its Gaussian blur|, same shape."""
    return np.abs(plane - ndimage.gaussian_filter(plane, _CONTRAST_SIGMA))


def _noise(size: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1: (size, size), features about `sigma` pixels wide."""
    plane = ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma, mode="wrap")
    return np.asarray((plane - plane.mean()) / plane.std())


def _blob(size: int, rng: np.random.Generator) -> np.ndarray:
    """An irregular round region in the middle of a window: alpha (size, size)."""
    radius = rng.uniform(0.21, 0.34) * size
    stretch = rng.uniform(1.0, 1.15)
    along, across = turned((size, size), rng.uniform(0, np.pi))
    distance = np.hypot(along / stretch, across * stretch) / radius
    distance = distance * (1 + 0.12 * _noise(size, 0.13 * size, rng))
    # An edge two pixels wide, a free border of one.
    alpha = np.clip((1 - distance) * radius / 2 + 0.5, 0, 1)
    alpha[[0, -1]] = alpha[:, [0, -1]] = 0
    parts, count = ndimage.label(alpha > 0)
    if count < 2:
        return np.asarray(alpha)
    areas = ndimage.sum_labels(np.ones_like(alpha), parts, range(1, count + 1))
    return np.where(parts == int(np.argmax(areas)) + 1, alpha, 0)
