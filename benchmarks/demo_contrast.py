"""The plain baseline that the demo sets must defeat: a map of local contrast.

If |image − its blur| found the painted defects, the demo would be a matter of vivid paint. A test
holds its pixel AUROC down, for every width of the blur.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from spg_pipe.datasets.paint.demo import Sample
from spg_pipe.datasets.paint.photographs import grey

WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""σ of the blur that is subtracted, pixels."""
SMOOTHINGS = (0.0, 4.0)
"""σ of a second blur, of the map itself, pixels."""


def contrast_auroc(
    samples: Iterable[Sample],
    *,
    widths: Sequence[float] = WIDTHS,
    smoothings: Sequence[float] = SMOOTHINGS,
    stride: int = 3,
) -> dict[tuple[float, float], float]:
    """Pixel AUROC of local-contrast maps: mean over categories of the test images.

    Parameters
    ----------
    samples
        A demo set's images; training images are left out.
    stride
        Every how many pixels, down and across, are counted.

    Returns
    -------
    dict
        (width, smoothing) → AUROC in [0, 1]; below 0.5 the defects have less contrast than
        the photographs.
    """
    chosen = [(w, s) for w in widths for s in smoothings]
    values: dict[str, list[np.ndarray]] = {}
    masks: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        if sample.split != "test":
            continue
        plane = grey(sample.image.astype(np.float32) / 255)
        maps = []
        for width in widths:
            contrast = np.abs(plane - ndimage.gaussian_filter(plane, width))
            maps += [ndimage.gaussian_filter(contrast, s) if s else contrast for s in smoothings]
        values.setdefault(sample.category, []).append(np.stack(maps)[:, ::stride, ::stride])
        masks.setdefault(sample.category, []).append(sample.mask[::stride, ::stride])
    scores = [
        _auroc(np.stack(values[name], axis=1).reshape(len(chosen), -1), np.stack(masks[name]))
        for name in values
    ]
    return dict(zip(chosen, np.mean(scores, axis=0).tolist(), strict=True))


def _auroc(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """AUROC of each row of `values` (n, P) against `mask` (any shape, P elements): (n,)."""
    positive = mask.ravel()
    count = positive.sum()
    ranks = rankdata(values, axis=1)[:, positive].sum(axis=1)
    return (ranks - count * (count + 1) / 2) / (count * (positive.size - count))
