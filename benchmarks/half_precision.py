"""What bfloat16 changes in the league, beside what seeds do.

    python -m benchmarks.half_precision FLOAT32 BFLOAT16

Two artifacts folders of one recipe (`dvc repro` in each, once with `backbone.precision: bfloat16`
in params.yaml). A row a direction: the mean over seeds in float32, what bfloat16 changes, and in
brackets the range over seeds in float32. Exits with 1 where a mean moves by more than that range.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.real_table import METRICS

Table = dict[tuple[str, str], dict[int, dict[str, float | None]]]
"""(auxiliary, target) → seed → metric → value."""


def read(folder: Path) -> Table:
    """The metrics files of a folder, those of other options than the recipe's aside."""
    table: Table = defaultdict(dict)
    for path in sorted(folder.glob("metrics/*/*--*-s[0-9][0-9][0-9].json")):
        run = json.loads(path.read_text())
        context = run["context"]
        direction = context["auxiliary"], context["dataset"]
        table[direction][run["provenance"]["seed"]] = run["mean"]["metrics"]
    return table


def cell(exact: list[float], half: list[float]) -> tuple[str, bool]:
    """What is printed of a metric, and whether its mean moved by more than its range."""
    change = statistics.mean(half) - statistics.mean(exact)
    spread = max(exact) - min(exact)
    return f"{statistics.mean(exact):.3f} {change:+.3f} ({spread:.3f})", abs(change) > spread


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("float32", type=Path)
    parser.add_argument("bfloat16", type=Path)
    given = parser.parse_args()
    exact, half = read(given.float32), read(given.bfloat16)
    if not exact or exact.keys() != half.keys():
        raise SystemExit("the folders do not hold metrics of the same directions")
    print("| auxiliary → target | seeds | " + " | ".join(METRICS) + " |")
    print("|---|---|" + "---|" * len(METRICS))
    beyond, compared = [], 0
    for direction, seeds in sorted(exact.items()):
        if seeds.keys() != half[direction].keys():
            raise SystemExit(f"{direction}: the folders hold other seeds")
        cells = [" → ".join(direction), str(len(seeds))]
        for name in METRICS:
            values = [[run[seed][name] for seed in seeds] for run in (seeds, half[direction])]
            if None in values[0]:  # a target without normal images, or without masks
                cells.append("–")
                continue
            text, moved = cell(*values)  # type: ignore[arg-type]
            cells.append(text)
            compared += 1
            if moved:
                beyond.append(f"{' → '.join(direction)}, {name}: {text}")
        print("| " + " | ".join(cells) + " |")
    print(f"{len(beyond)} of {compared} means move by more than the range over seeds")
    print("\n".join(beyond))
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
