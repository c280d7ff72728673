"""Pixel metrics of 60 maps of 448×448: ours against scikit-learn with the published PRO.

    python -m benchmarks.metrics [--rounds 3]

Both sides begin with maps and masks in memory; labelling regions counts on both. Baseline: AUROC,
AP, F1-max by scikit-learn and the 200-threshold PRO (benchmarks/reference/evaluate.py). Ours: the
same three and AUPRO at three limits. With the package `pyaupro` (extra `bench`) its exact AUPRO
alone is timed as well. The last line is one JSON object: ratios of medians, and the largest
difference of the histogram from the sort.
"""

import argparse
import importlib.util
import json
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.reference import evaluate as reference
from benchmarks.timing import machine, medians
from spg_pipe.metrics import PixelMetrics, accumulate

SIZE = 448


def made_up(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps (I, S, S) float32 like a detector's at τ = 0.07, and masks; a third is normal."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    maps = np.empty((images, SIZE, SIZE), np.float32)
    masks = np.zeros((images, SIZE, SIZE), np.uint8)
    for number, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        for _ in range(int(rng.integers(1, 5)) if number % 3 else 0):
            (y, x), radius = rng.integers(40, SIZE - 40, 2), rng.integers(6, 40)
            mask[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1
        texture = gaussian_filter(rng.standard_normal(mask.shape), 4) * 20
        logits = texture + gaussian_filter(5.0 * mask, 4) - 4
        anomaly_map[:] = 1 / (1 + np.exp(-logits))
    return maps, masks


def ours(maps: np.ndarray, masks: np.ndarray, kind: str) -> PixelMetrics:
    """All our pixel metrics by one accumulator."""
    return accumulate(lambda: zip(maps, masks, strict=True), kind)


def pyaupro_area(maps: np.ndarray, masks: np.ndarray) -> float:
    """AUPRO@0.3 by `pyaupro`'s exact mode."""
    import torch
    from pyaupro import PerRegionOverlap, auc_compute

    metric = PerRegionOverlap(thresholds=None)
    metric.update(torch.from_numpy(maps), torch.from_numpy(masks.astype(np.int64)))
    fpr, pro = metric.compute()
    return float(auc_compute(fpr, pro, limit=0.3, reorder=True))


def values(metrics: PixelMetrics) -> dict[str, float]:
    """Metrics by name."""
    areas = {f"aupro_{limit}": value for limit, value in metrics.aupro.items()}
    return {"auroc": metrics.auroc, "ap": metrics.ap, "f1_max": metrics.f1_max} | areas


def measure(images: int = 60, rounds: int = 3) -> dict[str, float]:
    """Print seconds, ratios and differences; return the ratios and differences."""
    maps, masks = made_up(images)
    literal = reference.pixel_metrics(maps, masks)
    exact, streaming = (ours(maps, masks, kind) for kind in ("sort", "histogram"))
    assert (exact.accumulator, streaming.accumulator) == ("sort", "histogram")
    error = max(abs(values(streaming)[name] - value) for name, value in values(exact).items())
    against = max(abs(values(exact)[name] - literal[name]) for name in ("auroc", "ap", "f1_max"))
    work = {
        "reference": partial(reference.pixel_metrics, maps, masks),
        "exact": partial(ours, maps, masks, "sort"),
        "streaming": partial(ours, maps, masks, "histogram"),
    }
    if importlib.util.find_spec("pyaupro"):
        theirs = pyaupro_area(maps, masks)
        print(f"AUPRO@0.3: pyaupro {theirs:.6f}, ours {exact.aupro[0.3]:.6f}")
        work["pyaupro"] = partial(pyaupro_area, maps, masks)
    else:
        print("pyaupro is not installed (pip install -c constraints.txt '.[bench]'): left out")
    seconds = medians(work, rounds, warm=0)
    for name, value in seconds.items():
        print(f"{name:10} {value:8.3f} s   reference / it {seconds['reference'] / value:6.1f}")
    print(f"largest difference: histogram from sort {error:.1e}, sort from scikit-learn")
    print(f"  {against:.1e}; the histogram's own bound {streaming.error_bound:.1e}")
    result = {
        "metrics_exact": seconds["reference"] / seconds["exact"],
        "metrics_streaming": seconds["reference"] / seconds["streaming"],
        "metrics_streaming_error": error,
        "metrics_streaming_bound": streaming.error_bound,
    }
    if "pyaupro" in seconds:
        result["aupro_pyaupro"] = seconds["pyaupro"] / seconds["exact"]
    return result


def main() -> dict[str, float]:
    """Measure by the options of the command line and print the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}; {options.images} maps of {SIZE}×{SIZE}, medians of {options.rounds}")
    result = measure(options.images, options.rounds)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))
    return result


if __name__ == "__main__":
    main()
