"""Whether thresholds keep on real scores what docs/thresholds.md promises of them.

    python -m benchmarks.thresholds SCORES… [--splits 50]

SCORES are folders that `spg-pipe score` wrote for labelled sets. Of each, its normal images are
split at random into halves: one calibrates, the other, with all defects, is judged.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from spg_pipe.decision.drift import Drift
from spg_pipe.decision.thresholds import (
    benjamini_hochberg,
    conformal_threshold,
    p_values,
    tolerance_threshold,
)

ALARMS, CONFIDENCE = 0.05, 0.95


def main() -> None:
    """Print the figures of each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", nargs="+", type=Path, metavar="SCORES")
    parser.add_argument("--splits", type=int, default=50)
    given = parser.parse_args()
    for folder in given.scores:
        table = pd.read_parquet(folder / "scores.parquet")
        normal = table["score"][table["label"] == 0].to_numpy()
        defects = table["score"][table["label"] == 1].to_numpy()
        print(f"\n{folder.name}: {len(normal)} normal images, {len(defects)} with a defect")
        _alarms(normal, defects, given.splits)
        _bounds(normal, 40 * given.splits)
        for rate in (0.1, 0.2, 0.3):
            _discoveries(normal, defects, rate, given.splits)
        _drift(normal, given.splits)


def _halves(normal: np.ndarray, split: int) -> tuple[np.ndarray, np.ndarray]:
    mixed = np.random.default_rng(split).permutation(normal)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def _alarms(normal: np.ndarray, defects: np.ndarray, splits: int) -> None:
    rates, found = [], []
    for split in range(splits):
        calibrating, rest = _halves(normal, split)
        threshold = conformal_threshold(calibrating, ALARMS)
        rates.append((rest > threshold).mean())
        found.append((defects > threshold).mean())
    print(f"conformal at {ALARMS}: false alarms {_mean(rates)}, defects found {_mean(found)}")


def _bounds(normal: np.ndarray, draws: int) -> None:
    """Drawn with replacement: the true rate of a threshold is then known, that in all images."""
    for method in ("tolerance", "conformal"):
        rates = []
        for split in range(draws):
            drawn = np.random.default_rng(split).choice(normal, len(normal))
            threshold = (
                tolerance_threshold(drawn, ALARMS, CONFIDENCE)
                if method == "tolerance"
                else conformal_threshold(drawn, ALARMS)
            )
            rates.append((normal > threshold).mean())
        held = np.mean(np.array(rates) <= ALARMS)
        print(
            f"{method} at {ALARMS}, {CONFIDENCE}: rate {_mean(rates)}, at most {ALARMS} in "
            f"{held:.3f} of {draws:,} draws"
        )


def _discoveries(normal: np.ndarray, defects: np.ndarray, rate: float, splits: int) -> None:
    false, found = [], []
    for split in range(splits):
        calibrating, rest = _halves(normal, split)
        alarms = benjamini_hochberg(p_values(np.sort(calibrating), np.append(rest, defects)), rate)
        false.append(alarms[: len(rest)].sum() / max(alarms.sum(), 1))
        found.append(alarms[len(rest) :].mean())
    print(f"batch at {rate}: false discoveries {_mean(false)}, defects found {_mean(found)}")


def _drift(normal: np.ndarray, splits: int) -> None:
    """Warnings in normal images of the other half, and how soon a shift by a deviation is seen."""
    warnings, soon = 0, []
    for split in range(splits):
        calibrating, rest = _halves(normal, split)
        threshold = calibrating[calibrating <= conformal_threshold(calibrating, ALARMS)].max()
        watch = Drift(np.sort(calibrating), threshold, 1000)
        warnings += any(watch.warns(score) for score in rest)
        watch = Drift(np.sort(calibrating), threshold, 1000)
        shifted = np.tile(rest - normal.std(), 10)
        soon.append(next((n for n, s in enumerate(shifted, 1) if watch.warns(s)), len(shifted)))
    print(
        f"drift at 1,000: a warning in {warnings} of {splits} runs of {len(normal) // 2} normal "
        f"images; a shift down by a deviation seen after {np.median(soon):.0f} (median)"
    )


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


if __name__ == "__main__":
    main()
