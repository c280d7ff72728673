"""The images of a demo set, in memory: what the writer writes and the tests measure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spg_pipe.datasets.paint.demo.catalogue import DemoSet
from spg_pipe.datasets.paint.demo.painters_mvtec import PAINTERS as MVTEC_PAINTERS
from spg_pipe.datasets.paint.demo.painters_visa import PAINTERS as VISA_PAINTERS
from spg_pipe.datasets.paint.demo.photographs import read_photograph, view
from spg_pipe.datasets.paint.demo.shapes import canvas_of

PAINTERS = {**MVTEC_PAINTERS, **VISA_PAINTERS}
_WINDOW = 0.56
"""Side of the window a defect is painted in, in image sides."""
_SENSOR_NOISE = 0.004
"""Standard deviation, of a range of 1."""


@dataclass(frozen=True)
class Sample:
    """One image of a demo set."""

    category: str
    split: str
    """`train` or `test`."""
    defect: str
    """`good`, or the painter's name."""
    number: int
    """Counts from 0 within split and defect."""
    image: np.ndarray
    """(S, S, 3) uint8."""
    mask: np.ndarray
    """(S, S) bool: the pixels that the painter touched."""


def samples(demo: DemoSet, seed: int) -> Iterator[Sample]:
    """Every image of a demo set, category by category.

    Each image has its own random generator, seeded by the seed and its place in the set.
    """
    for category, photograph in demo.categories.items():
        pixels = read_photograph(photograph)
        for split, defect, number in _places(demo):
            place = zlib.crc32(f"{demo.name}/{category}/{split}/{defect}".encode())
            rng = np.random.default_rng([seed, place, number])
            image = view(pixels, demo.image_size, rng)
            mask = np.zeros(image.shape[:2], bool)
            if defect != "good":
                image, mask = paint(image, defect, rng)
            # After the painting, so that a defect does not lack the camera's noise.
            image = np.clip(image + rng.normal(0, _SENSOR_NOISE, image.shape), 0, 1)
            levels = np.rint(image * 255).astype(np.uint8)
            yield Sample(category, split, defect, number, levels, mask)


def _places(demo: DemoSet) -> Iterator[tuple[str, str, int]]:
    """(split, defect, number) of the images of a category."""
    for number in range(demo.train):
        yield "train", "good", number
    for number in range(demo.normal):
        yield "test", "good", number
    for number in range(demo.anomalous):
        kinds = len(demo.painters)
        yield "test", demo.painters[number % kinds], number // kinds


def paint(
    image: np.ndarray, defect: str, rng: np.random.Generator, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Put one defect on an image.

    Parameters
    ----------
    image
        (S, S, 3) float32 in [0, 1].
    defect
        A key of `PAINTERS`.
    size
        Side of the window that it is painted in, pixels; the defect fills about half of it.
        Default: a good half of S.

    Returns
    -------
    painted : (S, S, 3) float32 in [0, 1]
        Equal to `image` wherever the mask is not set.
    mask : (S, S) bool
    """
    size = size or round(_WINDOW * image.shape[0])
    top, left = rng.integers(0, image.shape[0] - size + 1, 2)
    defect_paint = PAINTERS[defect](canvas_of(image, top, left, size), rng)
    window = (slice(top, top + size), slice(left, left + size))
    alpha = defect_paint.alpha[..., None]
    painted = image.copy()
    painted[window] = np.clip((1 - alpha) * image[window] + alpha * defect_paint.pixels, 0, 1)
    mask = np.zeros(image.shape[:2], bool)
    mask[window] = defect_paint.alpha > 0
    return painted, mask
