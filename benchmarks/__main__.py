"""`make bench`: the benchmarks of training, scoring and metrics in turn.

    python -m benchmarks [--only NAME …]

Each prints raw seconds of both sides and ratios against the reference recipe. The last line is one
JSON object with all ratios.
"""

import argparse
import json
from collections.abc import Callable

from benchmarks import end_to_end, guide_step, metrics, sae_epoch, sae_step, score_evaluate


def _scoring() -> dict[str, float]:
    return score_evaluate.measure() | score_evaluate.measure_memory()


def _epoch() -> dict[str, float]:
    ratios = sae_epoch.measure()
    sae_epoch.growth()
    return ratios


ALL: dict[str, Callable[[], dict[str, float]]] = {
    "sae_step": sae_step.run,
    "sae_epoch": _epoch,
    "guide_step": guide_step.measure,
    "metrics": metrics.measure,
    "score_evaluate": _scoring,
    "end_to_end": end_to_end.measure,
}


def main() -> None:
    """Run them and print the line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    found: dict[str, float] = {}
    for name in parser.parse_args().only:
        print(f"\n== {name} ==", flush=True)
        found |= ALL[name]()
    print(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}))


if __name__ == "__main__":
    main()
