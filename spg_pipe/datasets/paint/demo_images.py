"""The images of a demo set, in memory: what the writer writes and the tests measure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spg_pipe.datasets.paint.catalogue import DemoSet
from spg_pipe.datasets.paint.drawn import paint
from spg_pipe.datasets.paint.photographs import read_photograph, view

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
