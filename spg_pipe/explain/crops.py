"""Strips of pictures: what the patches look like where a latent is largest."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.decision.heat_maps import eight_bit, outline
from spg_pipe.errors import SpgError
from spg_pipe.images.reading import read_image
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.source import in_order

SIDE = 88
"""Of a crop, pixels."""
CONTEXT = 5
"""Sides of a patch that a crop shows, the patch in the middle."""
PATCH = (0, 220, 255)
"""Colour of the square around the patch: unlike the mask's white line, and rare in products."""
_GAP = 4
_QUALITY = 82
_THREADS = 2

Progress = Callable[[int, int], None]


class Place(NamedTuple):
    """A patch of an image."""

    store: int
    """Number of the store."""
    image: int
    """Row in the store."""
    patch: int
    """Row-major on the grid."""
    grid: tuple[int, int]


@dataclass(frozen=True)
class Photographs:
    """Where the images of a store are."""

    store: FeatureStore
    root: Path

    def read(self, image: int) -> tuple[np.ndarray, np.ndarray | None] | None:
        """An image (H, W, 3) uint8 and its mask (S, S), if it has one; None of one that is gone."""
        row, spec = self.store.table.iloc[image], self.store.spec
        try:
            pixels = read_image(self.root / row["path"], exif=spec.exif, white=spec.white)
        except SpgError:
            return None
        given = row["mask_state"] == MaskState.GIVEN
        mask = self.store.masks(np.array([image]))[0] if given else None
        return eight_bit(pixels), mask


def write_strips(
    strips: Mapping[str, Sequence[Place]],
    photographs: Sequence[Photographs],
    folder: Path,
    progress: Progress | None = None,
) -> set[str]:
    """Write `folder`/<name>.jpg for each strip: its crops side by side.

    Every photograph is decoded once. The crops wait in a file, so that memory does not grow with
    the number of strips.

    Parameters
    ----------
    strips : dict of name → places
        The places of a strip in their order.
    photographs : of each store
    progress : callable (images done, images in all), optional

    Returns
    -------
    set of str
        Names of the strips that were written: those of which a photograph is there.
    """
    wanted: dict[tuple[int, int], dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    first = {}
    count = 0
    for name, places in strips.items():
        first[name] = count
        for slot, patch in enumerate(places):
            wanted[patch.store, patch.image][patch].append(count + slot)
        count += len(places)
    there = np.zeros(count, bool)
    waiting = folder / ".crops"

    def cut(key: tuple[int, int]) -> dict[Place, np.ndarray]:
        picture = photographs[key[0]].read(key[1])
        return {} if picture is None else {patch: crop(*picture, patch) for patch in wanted[key]}

    held = np.memmap(waiting, np.uint8, "w+", shape=(max(1, count), SIDE, SIDE, 3))
    keys, written = sorted(wanted), set()
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, (key, crops) in enumerate(zip(keys, in_order(pool, cut, keys, 4), strict=True)):
            for patch, pixels in crops.items():
                held[wanted[key][patch]] = pixels
                there[wanted[key][patch]] = True
            if progress:
                progress(done + 1, len(keys))
    for name, places in strips.items():
        crops_of = slice(first[name], first[name] + len(places))
        if there[crops_of].any():
            _save(folder / f"{name}.jpg", held[crops_of][there[crops_of]])
            written.add(name)
    waiting.unlink()
    return written


def crop(pixels: np.ndarray, mask: np.ndarray | None, place: Place) -> np.ndarray:
    """A patch with its surroundings, (SIDE, SIDE, 3) uint8.

    A white line goes around the mask, a square of the colour PATCH around the patch.

    `pixels` are (H, W, 3) uint8; `mask` (S, S), of the whole image, is above 0 in a defect.
    """
    left, top, side = _window(pixels.shape[0], pixels.shape[1], place)
    box = (left, top, left + side, top + side)
    resized = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    small, square = np.asarray(resized), np.zeros((SIDE, SIDE), bool)
    square[_patch(pixels.shape[0], pixels.shape[1], place)] = True
    if mask is None:
        return outline(small, square, PATCH)
    rows, columns = mask.shape[0] / pixels.shape[0], mask.shape[1] / pixels.shape[1]
    in_mask = (left * columns, top * rows, box[2] * columns, box[3] * rows)
    grey = Image.fromarray(np.multiply(mask > 0, 255, dtype=np.uint8))
    inside = grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=in_mask)
    return outline(outline(small, np.asarray(inside) > 127), square, PATCH)


def _window(height: int, width: int, place: Place) -> tuple[float, float, float]:
    """Left, top and side of the square around a patch that lies in the image, pixels."""
    rows, columns = place.grid
    row, column = divmod(place.patch, columns)
    side = min(CONTEXT * max(height / rows, width / columns), height, width)
    top = (row + 0.5) * height / rows - side / 2
    left = (column + 0.5) * width / columns - side / 2
    return min(max(left, 0), width - side), min(max(top, 0), height - side), side


def _patch(height: int, width: int, place: Place) -> tuple[slice, slice]:
    """Rows and columns of the crop that the patch takes."""
    rows, columns = place.grid
    row, column = divmod(place.patch, columns)
    left, top, side = _window(height, width, place)
    x = (np.array([column, column + 1]) * width / columns - left) * SIDE / side
    y = (np.array([row, row + 1]) * height / rows - top) * SIDE / side
    return slice(*y.round().astype(int)), slice(*x.round().astype(int))


def _save(path: Path, crops: np.ndarray) -> None:
    gap = np.full((SIDE, _GAP, 3), 255, np.uint8)
    parts = [part for each in crops for part in (gap, each)][1:]
    Image.fromarray(np.concatenate(parts, axis=1)).save(path, quality=_QUALITY, subsampling=0)
