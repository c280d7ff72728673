"""Large images as overlapping tiles: small defects keep their pixels, memory keeps its size.

An image is resized to a large side and cut into square tiles of the backbone's own input size; the
tiles' patch tokens are put together into one large grid, blended where tiles overlap. What comes
out looks like any backbone's tokens, so that stores, scores and maps are those of large images.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from spg_pipe.backbones.base import Backbone, LayerTokens, forward, joined, place_images
from spg_pipe.backbones.spec import BackboneSpec, Tiles, TokenKey, check_image_size
from spg_pipe.errors import SpgError

MOST = 4096
"""Tiles of an image, at most: beyond, a side is more likely mistyped than meant."""
OVERLAP = 0.25
"""Share of a tile that its neighbour sees, too, unless told otherwise."""


def tiled(
    inner: Backbone, sides: Sequence[int], *, overlap: float = OVERLAP, at_once: int = 8
) -> Backbone:
    """A backbone that looks at large images tile by tile.

    Its `spec.preprocess.size` is the largest side; a layer's grid covers the whole image. With
    several sides every layer comes once for each, named as `TokenKey.name` says. An `SpgError` if a
    side does not fit, or there would be too many tiles.

    Parameters
    ----------
    inner : Backbone
        Its image size is the side of a tile.
    sides : sequence of int
        Sides in pixels to which an image is resized: multiples of the patch size, no smaller than
        a tile; one of a tile's own size is the whole image at once.
    overlap : float
        Least share of a tile's side that its neighbour sees, too; below 1.
    at_once : int
        Tiles in a forward pass.
    """
    return TiledBackbone(inner, check_sides(sides, inner.spec, overlap), at_once)


def check_sides(sides: Sequence[int], spec: BackboneSpec, overlap: float = OVERLAP) -> Tiles:
    """How an untiled backbone cuts images of these sides; SpgError if they cannot be cut so."""
    size = spec.preprocess.size
    if len(set(sides)) != len(sides):
        raise SpgError(f"Sides of tiled images: a number is there twice in {list(sides)}.")
    for side in sides:
        check_image_size(side, spec.patch_size, f"tiles of {spec.alias}")
        if side < size:
            raise SpgError(
                f"Images of {side} pixels are smaller than a tile of {spec.alias}, {size} pixels: "
                "give larger sides, or a smaller image size."
            )
    tiles = Tiles(size=size, sides=tuple(sorted(sides)), overlap=overlap)
    if (count := tiles.count(spec.patch_size)) > MOST:
        raise SpgError(
            f"Sides of {', '.join(map(str, sides))} pixels make {count:,} tiles of {size} pixels "
            f"an image; at most {MOST:,} are computed. Give smaller sides."
        )
    return tiles


class TiledBackbone:
    """See `tiled`."""

    def __init__(self, inner: Backbone, tiles: Tiles, at_once: int) -> None:
        self._inner, self._tiles, self._at_once = inner, tiles, at_once
        pre = replace(inner.spec.preprocess, size=tiles.sides[-1])
        self.spec = inner.spec.model_copy(update={"preprocess": pre, "tiles": tiles})

    def __call__(self, images: Tensor) -> dict[str, LayerTokens]:
        """Compute tokens: see `Backbone`. The prefix token is the mean of the tiles'."""
        images = place_images(images, images.device, self.spec)
        parts: dict[str, list[LayerTokens]] = defaultdict(list)
        for image in images.split(1):
            for side in self._tiles.sides:
                at = side if len(self._tiles.sides) > 1 else None
                view = image
                if side != image.shape[-1]:
                    view = F.interpolate(image, (side, side), mode="bilinear", antialias=True)
                for layer, tokens in self._whole(view, side).items():
                    parts[TokenKey(layer, at).name].append(tokens)
        # An image at a time until here, for memory; a batch of one is not copied.
        return {layer: each[0] if len(each) == 1 else joined(each) for layer, each in parts.items()}

    def _whole(self, image: Tensor, side: int) -> dict[str, LayerTokens]:
        """Tokens of one image (1, 3, side, side), put together from its tiles."""
        size, starts = self._tiles.size, self._tiles.starts(side, self.spec.patch_size)
        corners = list(itertools.product(range(len(starts)), repeat=2))
        sums: dict[str, Tensor] = {}
        prefix: dict[str, list[Tensor]] = defaultdict(list)
        for first in range(0, len(corners), self._at_once):
            part = corners[first : first + self._at_once]
            pixels = [
                image[..., starts[i] : starts[i] + size, starts[j] : starts[j] + size]
                for i, j in part
            ]
            outputs = forward(self._inner, torch.cat(pixels), self._at_once)
            for layer, tokens in outputs.items():
                rows, columns = tokens.grid
                stride = size // rows
                places = [start // stride for start in starts]
                cells = side // stride
                weights = blend(places, rows, cells).to(tokens.patches.device)
                if layer not in sums:
                    width = tokens.patches.shape[-1]
                    sums[layer] = tokens.patches.new_zeros((cells, cells, width))
                prefix[layer].append(tokens.prefix)
                for (i, j), patches in zip(part, tokens.patches, strict=True):
                    share = weights[i, :, None, None] * weights[j, None, :, None]
                    top, left = places[i], places[j]
                    room = sums[layer][top : top + rows, left : left + columns]
                    room.addcmul_(patches.unflatten(0, (rows, columns)), share)
        return {
            layer: LayerTokens(
                total.flatten(0, 1)[None],
                torch.cat(prefix[layer]).mean(dim=0, keepdim=True),
                (len(total), len(total)),
            )
            for layer, total in sums.items()
        }


def blend(places: Sequence[int], length: int, total: int) -> Tensor:
    """Weights (tiles, length) float32 of each tile's cells along one axis.

    They fall from a tile's middle to its borders, where a network has seen least around a patch,
    and those of all tiles that cover a cell add up to one: maps have no seams.
    `places` are the first cells of the tiles, of `length` cells each, among `total` cells.
    """
    ramp = torch.arange(length) + 0.5
    ramp = torch.minimum(ramp, length - ramp).double()
    sums = torch.zeros(total, dtype=torch.float64)
    for place in places:
        sums[place : place + length] += ramp
    return torch.stack([ramp / sums[place : place + length] for place in places]).float()
