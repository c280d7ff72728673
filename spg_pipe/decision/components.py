"""What can be seen in one image's tokens: how far each patch lies along the guides' direction, and
how far it is from the most similar patch elsewhere in its image.

Shapes: B images, T = 1 + N tokens (token 0 is CLS), D token width, m coordinates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spg_pipe.guides.layer import View
from spg_pipe.guides.model import detection_feature, lengths, unit

REACH = 2
"""A patch is not compared with those up to so many rows and columns away: a defect covers several
patches, which are alike."""
_CELLS = 2**20
"""Distances at once, 4 MiB, as a processor's cache holds; but always a row of the grid with all."""
SelfDistance = Callable[[Tensor, tuple[int, int], Tensor | None], Tensor]
"""See `self_distance`."""


class Sides(NamedTuple):
    """What the tokens of one layer are measured by."""

    directions: Mapping[View, Tensor]
    """View → (F, D): of `patches`, and of the images' feature if there are guides for it."""
    basis: Tensor
    """(D, m) orthonormal columns: the span of the guides' atoms."""

    def to(self, device: str | torch.device) -> "Sides":
        """On a device."""
        moved = {view: rows.to(device) for view, rows in self.directions.items()}
        return Sides(moved, self.basis.to(device))


@dataclass(frozen=True)
class Components:
    """Raw values of one layer, float32, higher is more anomalous."""

    guides: Tensor
    """(B, F, N): x·d of every unit patch token x with each of F directions d."""
    self_distance: Tensor
    """(B, N): see `self_distance`."""
    detection: Tensor | None
    """(B, F): x·d of each image's unit feature x, where the guides have a direction for it."""
    kept: Tensor | None = None
    """(B, N): how much each patch counts; None: all alike."""

    def of(self, images: Tensor, which: Tensor | int) -> "Components":
        """Of some images (k,), each by some (k, m) of the F directions, or all by one."""
        rows = images[:, None]
        detection = None if self.detection is None else self.detection[rows, which]
        kept = None if self.kept is None else self.kept[images]
        return Components(self.guides[rows, which], self.self_distance[images], detection, kept)

    def cpu(self) -> "Components":
        """On the CPU."""
        detection = None if self.detection is None else self.detection.cpu()
        return Components(self.guides.cpu(), self.self_distance.cpu(), detection, self.kept)


def components(
    tokens: Tensor,
    sides: Sides,
    grid: tuple[int, int],
    kept: Tensor | None = None,
    *,
    away: SelfDistance | None = None,
) -> Components:
    """Measure one layer's tokens.

    Parameters
    ----------
    tokens : (B, 1 + N, D) float32
    grid : (h, w)
        With h·w = N.
    kept : (B, N) float32 in [0, 1] on the CPU, optional
        How much each patch counts.
    away : callable, optional
        Another way to compute `self_distance`, of the same values.
    """
    patches, local = tokens[:, 1:], sides.directions["patches"]
    # One product for the guides and the coordinates: a token is read once.
    products = patches @ torch.cat([local.t(), sides.basis], dim=1)
    products /= lengths(patches)[..., None]
    along, coordinates = products.tensor_split([len(local)], dim=2)
    guides = along.transpose(1, 2).contiguous()  # a view would keep all of the product
    detection = None
    for view in sides.directions.keys() - {"patches"}:
        feature = unit(detection_feature(tokens, view, kept=kept))
        detection = feature @ sides.directions[view].t()
    distances = (away or self_distance)(coordinates, grid, kept)
    return Components(guides, distances, detection, kept)


def self_distance(coordinates: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
    """½‖x − y‖² from each patch x to the nearest patch y of its image that is not a neighbour.

    Of whole unit tokens this is 1 − cosine. Neighbours are at most `REACH` rows and columns away,
    in a small grid less, so that every patch is left another. A single patch has distance 0, and
    so have a patch that is wholly ignored and one that such patches leave no other.

    Parameters
    ----------
    coordinates : (B, N, m) float32
        Of unit tokens in an orthonormal basis.
    grid : (h, w)
    kept : (B, N), optional
        How much each patch counts: one that counts for nothing is no nearest patch either.

    Returns
    -------
    (B, N) float32, ≥ 0
    """
    (h, w), patches = grid, coordinates.shape[1]
    distances = coordinates.new_zeros(coordinates.shape[:2])
    reach = min(REACH, max(h, w) // 2 - 1)
    if reach < 0:
        return distances
    half = coordinates.square().sum(dim=2) / 2
    ignored = None if kept is None else (kept == 0).to(coordinates.device)
    lacking = half if ignored is None else half.masked_fill(ignored, torch.inf)
    images = max(1, _CELLS // patches**2)
    rows = max(1, _CELLS // (patches * w)) if images == 1 else h
    for first in range(0, len(coordinates), images):
        some = slice(first, first + images)
        for top in range(0, h, rows):
            block = slice(top * w, (top + rows) * w)
            alike = torch.baddbmm(
                -lacking[some, None], coordinates[some, block], coordinates[some].transpose(1, 2)
            )
            by_place = alike.unflatten(2, (h, w)).unflatten(1, (-1, w))
            for down in range(-reach, reach + 1):
                row = by_place.diagonal(top + down, dim1=1, dim2=3)
                for right in range(-reach, reach + 1):
                    row.diagonal(right, dim1=1, dim2=2).fill_(-torch.inf)
            distances[some, block] = half[some, block] - alike.amax(dim=2)
    if ignored is not None:
        distances[ignored | distances.isinf()] = 0
    return distances.clamp_min(0)
