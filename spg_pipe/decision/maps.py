"""Patch probabilities → full-size anomaly maps: upsample, average, blur (docs/method.md §4).

Every step is linear and works on one axis at a time, and so is their product: a blurred map is
R P Cᵀ of the patch grid P with two small matrices. No filter runs over the pixels.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from spg_pipe.decision.kept import Kept, whole
from spg_pipe.guides.model import interpolation, upsample

SIGMA = 4.0
"""Standard deviation of the map's Gaussian blur, pixels at S×S (docs/method.md §4)."""
HALFWAY = 4.0
"""Log odds that a finished map shows as 3/4, halfway from ½ to 1; see `finished`."""
SHOWN = (0.5, 5.0)
"""Log odds that get the darkest and the brightest colour: standardised components put an ordinary
patch at 0 ± 1, and a single component's outliers at 5."""
_TRUNCATE = 4.0
"""The blur's kernel ends at 4σ, with reflected borders (scipy's default semantics)."""


def raw_maps(patches: Mapping[str, Tensor], size: int | tuple[int, int]) -> Tensor:
    """Mean (B, H, W) over layers of upsampled patch probabilities (B, h, w) float32."""
    return torch.stack([upsample(values, size) for values in patches.values()]).mean(dim=0)


def anomaly_maps(
    patches: Mapping[str, Tensor],
    size: int,
    sigma: float = SIGMA,
    at: tuple[int, int] | None = None,
    *,
    log_odds: bool = False,
    kept: Kept | None = None,
) -> np.ndarray:
    """Full-size anomaly maps: upsample each layer, average, blur, and resize if asked to.

    Each image is computed on its own, so that its map does not depend on its neighbours in a
    batch, to the last bit. In float64: a map of ones stays at one, which float32 weights overshoot.

    Parameters
    ----------
    patches : dict of layer → (B, h, w) float32
        Probabilities, or any other value, on the CPU; each layer may have its own grid.
    size : int
        S: the blur works at S×S.
    sigma : float
        Pixels at S×S; 0 leaves the upsampled maps as they are.
    at : (H, W), optional
        Resize the blurred maps bilinearly (align_corners=False) to H×W. Default: S×S.
    log_odds : bool
        The patches are log odds; `finished` brings their maps to [0, 1].
    kept : Kept, optional
        Each patch then counts by its share that is kept, and a pixel's value is divided by what
        counted for it: what is ignored gives nothing to its neighbours. Ignored pixels are 0.

    Returns
    -------
    (B, S, S) or (B, H, W) float32, in [0, 1] for probabilities and log odds
    """
    height, width = at or (size, size)
    images = len(next(iter(patches.values())))
    maps = np.empty((images, height, width), np.float32)
    grids = {layer: (values.shape[1], values.shape[2]) for layer, values in patches.items()}
    with one_thread():
        for number, image in enumerate(torch.from_numpy(maps)):
            counted = _counted(kept, number, grids, size, sigma, (height, width))
            fields = {layer: values[number].double() for layer, values in patches.items()}
            if counted:
                fields = {layer: field * counted.patches[layer] for layer, field in fields.items()}
            total = added_up(fields.values(), size, (height, width), sigma)
            mean = total / (counted.pixels if counted else len(patches))
            image.copy_(finished(mean) if log_odds else mean)
            if counted:
                image[counted.ignored] = 0
    return maps


def added_up(
    fields: Iterable[Tensor], size: int, at: tuple[int, int], sigma: float = SIGMA
) -> Tensor:
    """The sum of patch grids (h, w) float64, each upsampled and blurred at S×S: at (H, W)."""
    total = torch.zeros((), dtype=torch.float64)
    for field in fields:
        rows, columns = field.shape
        left = axis_weights(rows, size, sigma, at[0])
        right = axis_weights(columns, size, sigma, at[1])
        total = total + (left @ field) @ right.t()
    return total


class _Counted(NamedTuple):
    """What counts of an image that is ignored in part."""

    patches: dict[str, Tensor]
    """Layer → (h, w) float64 shares."""
    pixels: Tensor
    """(H, W) float64: what the patches count for a pixel together, of all layers."""
    ignored: Tensor
    """(H, W) bool."""


def _counted(
    kept: Kept | None,
    number: int,
    grids: Mapping[str, tuple[int, int]],
    size: int,
    sigma: float,
    at: tuple[int, int],
) -> _Counted | None:
    """Of an image by its number; None if all of it counts."""
    if kept is None or whole(kept.shares[number : number + 1]):
        return None
    own, pixels = kept.some(slice(number, number + 1)), torch.zeros(at, dtype=torch.float64)
    patches = {layer: own.at(grid)[0].double() for layer, grid in grids.items()}
    for (rows, columns), shares in zip(grids.values(), patches.values(), strict=True):
        left = axis_weights(rows, size, sigma, at[0])
        pixels += (left @ shares) @ axis_weights(columns, size, sigma, at[1]).t()
    # Farther from all that counts than the blur reaches, nothing is divided by nothing.
    return _Counted(patches, pixels.clamp_min(1e-300), own.at(at)[0] == 0)


def patch_weights(
    pixels: np.ndarray,
    grids: Mapping[str, tuple[int, int]],
    size: int,
    sigma: float = SIGMA,
    *,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """What each patch counts in a weighted sum of a map's pixels: `anomaly_maps` transposed.

    Parameters
    ----------
    pixels : (B, H, W) float
        Weights of the pixels of maps that `anomaly_maps` makes at H×W.
    grids : dict of layer → (h, w)
        Of all layers that the maps are the mean of.
    size, sigma, kept
        As for `anomaly_maps`. Ignored pixels have weight 0.

    Returns
    -------
    dict of layer → (B, h, w) float64
        Σ pixels · map = Σ over layers and patches of these · the patch's value.
    """
    height, width = pixels.shape[1:]
    if kept is not None:
        each = [
            _counted(kept, number, grids, size, sigma, (height, width))
            for number in range(len(pixels))
        ]
        # `len` below is what patches count for a pixel where nothing is ignored.
        parts = [
            image * (len(grids) / counted.pixels.numpy()) if counted else image
            for image, counted in zip(pixels, each, strict=True)
        ]
        pixels = np.stack(parts)
    weights = {}
    for layer, (rows, columns) in grids.items():
        left = axis_weights(rows, size, sigma, height).numpy()
        right = axis_weights(columns, size, sigma, width).numpy()
        weights[layer] = np.matmul(left.T, np.matmul(pixels, right)) / len(grids)
        if kept is not None:
            weights[layer] *= kept.at((rows, columns)).numpy()
    return weights


def finished(odds: Tensor) -> Tensor:
    """Log odds of any range as values in [0, 1] of the same order: ½ + z/(2 + 2|z|), z = odds/4.

    Not their sigmoid: a bank's distances on a uniform product reach hundreds of deviations, and
    float32 holds no more steps of a sigmoid below 1 at 16.6. Here log odds of 1,000 are still told
    apart where they differ by a ten-thousandth. `odds` are float64, of any shape.
    """
    part = odds / HALFWAY
    return 0.5 + part / (2 + 2 * part.abs())


def shown_range(*, log_odds: bool, between: tuple[float, float] = SHOWN) -> tuple[float, float]:
    """Values of a finished map that get the darkest and the brightest colour of a heat map.

    With `log_odds` the map is of log odds, of which `between` are these two.
    """
    if not log_odds:
        return 0.0, 1.0
    low, high = finished(torch.tensor(between, dtype=torch.float64)).tolist()
    return low, high


def resize_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Blurred maps (n, S, S) float32 at an image's own size (n, H, W), bilinearly."""
    # PyTorch's kernel: without a gradient to give, it takes a sixth of the time of `upsample`.
    one_channel = torch.from_numpy(maps)[:, None]
    return F.interpolate(one_channel, size, mode="bilinear", align_corners=False)[:, 0].numpy()


@contextmanager
def one_thread() -> Iterator[None]:
    """For products of a millisecond, which threads only wait for: 30 times the CPU time on 2 cores.

    It also makes the bits the same for any number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=64)
def axis_weights(cells: int, size: int, sigma: float, pixels: int) -> Tensor:
    """Weights (pixels, cells) float64 of one axis: cells → size, blurred there, → pixels."""
    weights = _interpolation(cells, size)
    if sigma > 0:
        # scipy's own filter over the columns: its kernel, its borders, its truncation.
        weights = gaussian_filter1d(weights, sigma, axis=0, mode="reflect", truncate=_TRUNCATE)
    if pixels != size:
        weights = _interpolation(size, pixels) @ weights
    return torch.from_numpy(np.ascontiguousarray(weights))


def _interpolation(source: int, target: int) -> np.ndarray:
    """Weights (target, source) float64 of one axis, from PyTorch's own float32 interpolation."""
    weights = interpolation(source, target).double()
    # Their two weights are rounded each; without this a map of ones would not stay at one.
    return (weights / weights.sum(dim=1, keepdim=True)).numpy()
