"""An image of any size as a backbone's input, in operations that every runtime has.

Pillow resizes 8-bit pixels with weights that it computes in float64 and rounds to 22 bits, and it
adds up in integers. Some runtimes have neither float64 nor integers of that size, so both are made
of float32 here: weights of pairs of numbers whose sum is meant (Dekker 1971), pixels of products
and sums below 2²⁴, where float32 is exact. The result is Pillow's, to the bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from spg_pipe.images.preprocess import Preprocess

PRECISION = 22
"""Bits of Pillow's weights (PRECISION_BITS)."""
_LOW = 128
"""A weight is high · 128 + low, where |low| ≤ 64: sums of 255 · low over 1,028 pixels, and of
255 · high over all of an output, stay below 2²⁴."""
_COARSE = 2.0**11
"""Sums of multiples of its inverse are exact."""


class _Pair(NamedTuple):
    """high + low, where low is less than a step of high."""

    high: Tensor
    low: Tensor


def largest_side(size: int) -> int:
    """Pixels of a side for which `resized` to S×S is exact: an output is of 1,025 at most."""
    return min(65_536, 256 * size)


def resized(image: Tensor, spec: Preprocess) -> Tensor:
    """As `images.preprocess.preprocess`, in a graph.

    Parameters
    ----------
    image : (1, H, W, 3) uint8
        H and W may be symbols, up to `largest_side`.

    Returns
    -------
    (1, 3, S, S) float32, normalised
    """
    size, (height, width) = spec.size, image.shape[1:3]
    channels = image[0].permute(2, 0, 1)  # bytes, before they are four times as large
    rows, columns = axis_shares(height, spec), axis_shares(width, spec)
    if spec.order == "uint8":
        across = _levels(channels.float().flatten(0, 1), _whole(*columns, width))
        down = _levels(across.view(3, -1, size).transpose(1, 2), _whole(*rows, height))
        pixels = down.transpose(1, 2) / 255
    else:
        scaled = channels.float() * (1 / 255)
        across = scaled.flatten(0, 1) @ _dense(*_float(columns), width).t()
        pixels = _dense(*_float(rows), height) @ across.view(3, -1, size)
    mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))
    return ((pixels - mean) / std)[None]


def axis_shares(pixels: int, spec: Preprocess) -> tuple[Tensor, _Pair, _Pair]:
    """What the pixels of one axis, near each output, count for it.

    Parameters
    ----------
    pixels : int
        H or W, perhaps a symbol.

    Returns
    -------
    first : (S,) int64
        Number of the first pixel, perhaps below 0.
    shares : (S, T) pair
        Of T pixels from there on; 0 of those that are none.
    total : (S, 1) pair
        Their sum.
    """
    size, reach = spec.size, 2 * (pixels // spec.size) + 2
    centres = (2 * torch.arange(size) + 1) * pixels  # in halves of a pixel, times S
    first = torch.div(centres, 2 * size, rounding_mode="trunc") - reach
    places = first[:, None] + torch.arange(2 * reach + 1)
    away = ((2 * places + 1) * size - centres[:, None]).abs().float()
    # Twice the larger of both sizes: what the filter calls 1.
    unit = torch.maximum(torch.full((1,), 2.0 * size), torch.arange(pixels, pixels + 1).float() * 2)
    share = _filter(_ratio(away, unit), spec.interpolation)
    inside = ((places >= 0) & (places < pixels)).float()
    share = _Pair(share.high * inside, share.low * inside)
    coarse = (share.high * _COARSE).round() / _COARSE
    fine = (share.high - coarse) + share.low
    total = _sum(coarse.sum(dim=1, keepdim=True), fine.sum(dim=1, keepdim=True))
    return first, share, total


def _filter(away: _Pair, interpolation: str) -> _Pair:
    """Pillow's filter at a distance ≥ 0: bilinear, or bicubic with a = −½."""
    if interpolation == "bilinear":
        sum_ = _sum(torch.ones(()), -away.high)
        near = away.high < 1
        return _Pair(sum_.high * near, (sum_.low - away.low) * near)
    # 1.5 t³ − 2.5 t² + 1 below 1, and with u = 2 − t: 0.5 u³ − 0.5 u².
    near = away.high < 1
    rest = _sum(torch.full((), 2.0), -away.high)
    rest = _sum(rest.high, rest.low - away.low)
    inside = (away.high < 2).float()
    value = _Pair(
        torch.where(near, away.high, rest.high * inside),
        torch.where(near, away.low, rest.low * inside),
    )
    cubic = near.float() + 0.5
    square = torch.where(near, -2.5, -0.5)
    constant = near.float()
    inner = _product(value, _Pair(cubic, torch.zeros_like(cubic)))
    inner = _plus(inner, square)
    return _plus(_product(_product(inner, value), value), constant)


def _whole(first: Tensor, share: _Pair, total: _Pair, pixels: int) -> Tensor:
    """Pillow's weights in whole units of 2⁻²²: (2·S, pixels) float32, high parts, then low ones."""
    unit = 2.0**PRECISION
    near = (share.high / total.high * unit).round()
    taken = _exact_product(near, total.high)
    rest = ((share.high * unit - taken.high) - taken.low) + (share.low * unit - near * total.low)
    rest = rest / total.high
    up = (rest + 0.5).floor()
    down = (rest - 0.5).ceil()
    weights = _dense(first, near + torch.where(share.high < 0, down, up), pixels)
    high = (weights / _LOW).round()
    return torch.cat([high, weights - high * _LOW])  # PyTorch 2.10 traces no flattened stack


def _levels(values: Tensor, weights: Tensor) -> Tensor:
    """8-bit sums (…, S) of values (…, pixels) in 0 to 255, rounded and clipped as Pillow does."""
    high, low = (values @ weights.t()).chunk(2, dim=-1)
    # (128·high + low + ½ unit) / unit, rounded down; all are whole numbers below 2²⁴.
    above = high + (low / _LOW).floor()
    half, unit = 2.0 ** (PRECISION - 1) / _LOW, 2.0**PRECISION / _LOW
    return ((above + half) / unit).floor().clamp(0, 255)


def _float(axis: tuple[Tensor, _Pair, _Pair]) -> tuple[Tensor, Tensor]:
    """Weights (S, T) float32 without rounding."""
    first, share, total = axis
    return first, share.high / total.high


def _dense(first: Tensor, weights: Tensor, pixels: int) -> Tensor:
    """(S, T) of pixels from `first` (S,) on → (S, pixels)."""
    places = torch.arange(pixels)[None] - first[:, None]
    last = weights.shape[1] - 1
    nearest = weights.gather(1, places.clamp(min=0).clamp(max=last))
    return nearest * ((places >= 0) & (places <= last)).float()


def _ratio(a: Tensor, b: Tensor) -> _Pair:
    """a / b."""
    high = a / b
    product = _exact_product(high, b.expand_as(high))
    return _Pair(high, ((a - product.high) - product.low) / b)


def _sum(a: Tensor, b: Tensor) -> _Pair:
    """a + b, exactly (Knuth's two-sum)."""
    high = a + b
    part = high - a
    return _Pair(high, (a - (high - part)) + (b - part))


def _exact_product(a: Tensor, b: Tensor) -> _Pair:
    """a · b, exactly (Dekker's product)."""
    high, left, right = a * b, _halves(a), _halves(b)
    low = left.high * right.high - high
    low = (low + left.high * right.low) + left.low * right.high
    return _Pair(high, low + left.low * right.low)


def _halves(a: Tensor) -> _Pair:
    """a as two numbers of 12 bits (Veltkamp's split)."""
    wide = a * 4097
    high = wide - (wide - a)
    return _Pair(high, a - high)


def _product(a: _Pair, b: _Pair) -> _Pair:
    product = _exact_product(a.high, b.high)
    return _sum(product.high, product.low + (a.high * b.low + a.low * b.high))


def _plus(a: _Pair, b: Tensor) -> _Pair:
    total = _sum(a.high, b.expand_as(a.high))
    return _sum(total.high, total.low + a.low)
