"""Integer keys that order probabilities as their logits do, evenly enough to make bins of them.

Maps at temperature 0.07 saturate, so bins must be as fine at 1e-9 and at 1 - 1e-6 as at 0.5: even
in the logit, not in the probability. The logit itself costs a logarithm a pixel, whose rounding
differs between machines and can put two scores into the wrong order. The bits of a float32 are
already a piecewise-linear logarithm of base 2 (off by at most 0.09): of p below 1/2, where the
logit is log p, and, mirrored, of 1 - p above (exact in float32 there). That is what the key is:
2^23 steps an octave of p or of 1 - p, no two scores swapped, the same everywhere.
"""

from __future__ import annotations

import numpy as np

_HALF = int(np.float32(0.5).view(np.int32))
# e^(-2/0.07) = 3.9e-13 is the least that a softmax of two cosines gives at temperature 0.07;
# all below 2^-40 = 9.1e-13 becomes one key, so that an exact 0 does not stretch the range.
_LOW = int(np.float32(2.0**-40).view(np.int32))
# 1 - p is at least 2^-24 in float32, or exactly 0, which lies an octave further.
_HIGH = int(np.float32(2.0**-25).view(np.int32))

N_LOW = _HALF - _LOW  # key of p = 1/2
_BLOCK = 8192  # scores whose intermediate values stay in a core's first cache

MAX_KEY = N_LOW + _HALF - _HIGH  # key of p = 1: 63 octaves of 2^23 steps


def score_keys(scores: np.ndarray) -> np.ndarray:
    """Keys of probabilities: p < q has key(p) <= key(q), equal only if both are below 2^-40.

    Of float32 in [0, 1] of any shape int32 of the same shape, 0 … MAX_KEY.
    """
    # The smaller of p and 1 - p is the tail on p's side of 1/2.
    tail = np.minimum(scores, np.float32(1) - scores).view(np.int32)
    np.maximum(tail, _LOW, out=tail)
    above = MAX_KEY - np.maximum(tail - _HIGH, 0)
    return np.where(scores < 0.5, tail - _LOW, above)


def score_bins(scores: np.ndarray, level: int, base: int, out: np.ndarray) -> None:
    """Fill `out` (P,) int64 with `(score_keys(scores) >> level) - base`, a block at a time."""
    for start in range(0, len(scores), _BLOCK):
        block, room = scores[start : start + _BLOCK], out[start : start + _BLOCK]
        if block.max() < 0.5:  # most blocks of most maps: the lower half of `score_keys` will do
            keys = np.maximum(block.view(np.int32), _LOW)
            keys -= _LOW
        else:
            keys = score_keys(block)
        keys >>= level
        np.subtract(keys, base, out=room)


def lowest_score(keys: np.ndarray) -> np.ndarray:
    """The lowest float32 probability whose key is at least the given one.

    Of keys (K,) int64, at least 0, (K,) float32: `score >= lowest_score(k)` is `score_keys(score)
    >= k`; above 1 where the key is above MAX_KEY, which no probability has.
    """
    low = (np.minimum(keys, N_LOW) + _LOW).astype(np.int32).view(np.float32)
    tail = (MAX_KEY - np.clip(keys, N_LOW, MAX_KEY) + _HIGH).astype(np.int32).view(np.float32)
    exact = np.where(keys < N_LOW, low, 1.0 - tail.astype(np.float64))
    exact[keys == 0] = 0.0
    exact[keys == MAX_KEY] = 1.0
    exact[keys > MAX_KEY] = np.nextafter(np.float32(1), np.float32(2))
    rounded = exact.astype(np.float32)
    return np.where(rounded < exact, np.nextafter(rounded, np.float32(2)), rounded)
