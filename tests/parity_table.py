"""Print one table of our numbers against the reference's: python tests/parity_table.py DIR.

DIR holds README.json and npz files (see parity/cases.py). Exits with 1 when a number is off.
Results that no comparison covers are listed and counted.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from parity.cases import KINDS, Case, Comparison, cases, uncompared


def main(argv: list[str]) -> int:
    folder = Path(argv[1]) if len(argv) > 1 else Path(__file__).parent / "oracle"
    if not (folder / "README.json").is_file():
        print(f"{folder}: no README.json here. Give the folder that holds the reference's cases.")
        return 1
    found = cases(folder=folder)
    failures = skipped = 0
    print(f"{'array':<58} {'max error':>10} {'tolerance':>10}  ok")
    for case in found:
        print(f"-- {case.name} ({case.kind})")
        started = time.perf_counter()
        comparisons = compare_kind(case)
        for item in comparisons:
            verdict = "yes" if item.ok else "NO"
            print(f"{item.array:<58} {item.max_error:>10.2e} {item.tolerance:>10.2e}  {verdict}")
        missed = uncompared(case, comparisons)
        for name in missed:
            print(f"{name:<58} {'not compared':>21}  -")
        skipped += len(missed)
        failures += sum(not item.ok for item in comparisons)
        print(f"   {len(comparisons)} numbers in {time.perf_counter() - started:.1f} s")
    print(f"{len(found)} cases, {failures} failures, {skipped} results not compared")
    return 1 if failures or not found else 0


def compare_kind(case: Case) -> list[Comparison]:
    """The comparisons of a case by its kind's own function."""
    if case.kind not in KINDS:
        return []
    return importlib.import_module(f"parity.{case.kind}_case").compare_case(case)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
