"""Protocol `spg`: the reference's own definitions, to compare with the published tables.

See docs/metrics.md and docs/method.md §5. AUROC and AP are those of protocol `exact`. PRO is not
MVTec's: 200 evenly spaced thresholds, the false-positive rates below 0.3 stretched to [0, 1].
A monotone change of the scores moves it, and so does one outlier pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spg_pipe.errors import SpgError
from spg_pipe.metrics.accumulators import SortAccumulator, SortedScores
from spg_pipe.metrics.curves import Curve
from spg_pipe.metrics.pixel import PixelMetrics

STEPS = 200
MAX_FPR = 0.3


@dataclass(frozen=True)
class SpgPro:
    """The reference's PRO: its curve, and the areas of its two functions."""

    fast: float  # the published runs; 0 where there is no region or FPR does not vary
    slow: float  # NaN there
    n_thresholds: int  # 200 or 201, as rounding in np.arange has it
    curve: Curve  # (FPR, mean overlap) where FPR < 0.3, by rising FPR; empty without a region


def spg_metrics(accumulator: SortAccumulator) -> PixelMetrics:
    """Pixel metrics of a category as the reference computes them.

    An `SpgError` where the reference fails with a ValueError; see `spg_pro`.

    Parameters
    ----------
    accumulator : the scores of all images of the category.

    Returns
    -------
    Metrics with `pro` ("fast", "slow") instead of `aupro`, and the F1 threshold for score >
    threshold.
    """
    pro, scores, exact = spg_pro(accumulator), accumulator.sorted(), accumulator.compute()
    return replace(
        exact,
        protocol="spg",
        f1_threshold=one_score_below(exact.f1_threshold, scores.normal, scores.anomalous),
        aupro={},
        pro={"fast": pro.fast, "slow": pro.slow},
        curves={**exact.curves, "pro": pro.curve},
    )


def spg_pro(accumulator: SortAccumulator) -> SpgPro:
    """PRO, fast and slow, of the reference.

    Raises
    ------
    SpgError : all scores are equal, there is no normal pixel, or fewer than two thresholds have
        a false-positive rate below 0.3. The reference stops with a ValueError there.
    """
    from sklearn.metrics import auc

    scores, n_regions = accumulator.sorted(), accumulator.counts.regions
    thresholds, n_normal = _thresholds(scores), len(scores.normal)
    if n_normal == 0:
        raise SpgError(
            "PRO of protocol spg: no normal pixel, so there is no false-positive rate. Use "
            "metrics.protocol: exact, which leaves such a category out of the mean."
        )
    fpr = (n_normal - np.searchsorted(scores.normal, thresholds, side="right")) / n_normal
    # The overlap above a threshold: what the regions' pixels weigh from the first one above it.
    weight_from = np.append(np.cumsum(1.0 / scores.area[::-1])[::-1], 0.0)
    overlap = weight_from[np.searchsorted(scores.anomalous, thresholds, side="right")]
    kept = np.flatnonzero(fpr < MAX_FPR)[::-1]
    if len(kept) < 2:
        raise SpgError(
            f"PRO of protocol spg: {len(kept)} of {len(thresholds)} thresholds have a "
            f"false-positive rate below {MAX_FPR}, and an area needs two. The maps hold too few "
            "distinct scores for it; use metrics.protocol: exact."
        )
    fpr, spread = fpr[kept], fpr[kept[-1]] - fpr[kept[0]]
    pro = overlap[kept] / n_regions if n_regions else np.full(len(kept), np.nan)
    fast = auc((fpr - fpr[0]) / (spread + 1e-12), pro if n_regions else np.zeros_like(pro))
    with np.errstate(invalid="ignore"):  # 0/0 where FPR does not vary: NaN, as the reference
        slow = auc((fpr - fpr[0]) / spread, pro)
    curve = Curve(fpr, pro) if n_regions else Curve(np.empty(0), np.empty(0))
    return SpgPro(float(fast), float(slow), len(thresholds), curve)


def _thresholds(scores: SortedScores) -> np.ndarray:
    """The reference's thresholds, in float32 as its maps are: rounding decides 200 or 201."""
    ends = [part[[0, -1]] for part in (scores.normal, scores.anomalous) if len(part)]
    low, high = (np.min(ends), np.max(ends)) if ends else (np.float32(0), np.float32(0))
    step = (high - low) / STEPS
    if not step > 0:
        raise SpgError(
            f"PRO of protocol spg: all {len(scores.normal) + len(scores.anomalous):,} scores are "
            f"{low:g}, so no threshold can be laid between them. Look at the detector's maps, or "
            "use metrics.protocol: exact, where a constant map is no error."
        )
    return np.arange(low, high, step)


def one_score_below(threshold: float, *sorted_scores: np.ndarray) -> float:
    """The threshold t for score > t that selects what score >= threshold does.

    It is the next distinct score below, of all in `sorted_scores` (ascending) together; the next
    float where there is none; NaN for NaN.
    """
    if np.isnan(threshold):
        return float("nan")
    lower = []
    for scores in sorted_scores:
        position = int(np.searchsorted(scores, threshold, side="left"))
        lower += [float(scores[position - 1])] if position else []
    return max(lower, default=float(np.nextafter(np.float32(threshold), np.float32(-np.inf))))
