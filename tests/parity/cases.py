"""The reference's cases: one helper for every parity test.

A folder of cases holds a README.json (each file's kind, scalars, arrays with role and tolerance)
and the npz files. Cases of one kind may have other sizes than the project's own copy in
tests/oracle, and may lack intermediate arrays: ask `case.has(name)` before comparing.

The contract of a kind K (metrics, sae, guide, preprocess, clip):

- `tests/parity/K_case.py` has `compare_case(case: Case) -> list[Comparison]`. It calls the
  functions that the command line calls, feeds them the arrays of role "in" and the scalars of
  role "param", and makes one `compare(...)` for every array and scalar of role "out" that the
  case has. A comparison is named after its array or scalar, with a suffix for a part of it:
  "train_W", "train_W[3]", "cont.pixel_auroc".
- `tests/parity/test_parity.py` calls it for every case and asserts that all comparisons are ok.
- `tests/parity_table.py DIR` prints all kinds' comparisons, and what nobody compared.

Import as `from parity.cases import cases, compare`: tests/ is on the path under pytest (it has no
__init__.py) and when parity_table.py runs as a script.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

OWN_CASES = Path(__file__).parent.parent / "oracle"
KINDS = ("metrics", "sae", "guide", "preprocess", "clip")


@dataclass(frozen=True)
class Comparison:
    """One array of ours held to the reference's."""

    array: str
    max_error: float  # max |got - expected|; inf where shapes or the places of NaN differ
    tolerance: float  # absolute: tol * max(1, max |expected|)
    ok: bool


@dataclass(frozen=True)
class Case:
    """One npz file of a folder of cases, with its entry of README.json."""

    name: str
    kind: str
    path: Path
    scalars: dict[str, Any]
    arrays: dict[str, dict[str, Any]] = field(repr=False)  # README's entry: shape, role, tol, desc
    roles: dict[str, str] = field(repr=False)  # of scalars
    default_tol: float

    def __str__(self) -> str:
        return self.name

    @cached_property
    def _npz(self) -> Any:
        return np.load(self.path, allow_pickle=False)

    def has(self, name: str) -> bool:
        """Whether the file holds the array."""
        return name in self._npz.files

    def array(self, name: str) -> np.ndarray:
        """The array with the dtype that it was stored in; KeyError where it is absent."""
        if not self.has(name):
            raise KeyError(f"{self.path.name} has no array {name!r}; it has {self._npz.files}")
        return self._npz[name]

    def has_scalar(self, name: str) -> bool:
        """Whether the case has the scalar; "cont.pixel_ap" looks into a dict."""
        value: Any = self.scalars
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True

    def scalar(self, name: str, default: Any = None) -> Any:
        """A scalar (number, list, dict or string); without a default its absence is a KeyError."""
        if not self.has_scalar(name):
            if default is not None:
                return default
            raise KeyError(f"{self.name} has no scalar {name!r}; it has {sorted(self.scalars)}")
        value: Any = self.scalars
        for key in name.split("."):
            value = value[key]
        return value

    def role(self, name: str) -> str:
        """in, out, param or note; a scalar without an entry is a result (README's `reading`)."""
        if name in self.arrays:
            return self.arrays[name].get("role", "out")
        return self.roles.get(name.split(".", maxsplit=1)[0], "out")

    def tol(self, name: str) -> float:
        """Tolerance of an array or scalar, relative to max(1, max|expected|)."""
        return float(self.arrays.get(name, {}).get("tol", self.default_tol))

    def outputs(self) -> list[str]:
        """Names of all arrays and scalars of role "out" that the case has."""
        names = [n for n in self._npz.files if self.role(n) == "out"]
        return names + [n for n in self.scalars if self.role(n) == "out"]


def oracle_folder() -> Path:
    """The folder of cases: $SPG_ORACLE, else the project's own copy."""
    return Path(os.environ.get("SPG_ORACLE") or OWN_CASES)


def cases(kind: str | None = None, folder: Path | None = None) -> list[Case]:
    """The cases of a kind (None: all) in a folder (None: `oracle_folder()`), by name."""
    folder = oracle_folder() if folder is None else folder
    readme = json.loads((folder / "README.json").read_text())
    found = []
    for name, entry in sorted(readme["files"].items()):
        if kind in (None, entry["kind"]):
            found.append(
                Case(
                    name=name,
                    kind=entry["kind"],
                    path=folder / entry["file"],
                    scalars=entry.get("scalars", {}),
                    arrays=entry.get("arrays", {}),
                    roles=entry.get("roles", {}),
                    default_tol=float(entry["tol"]),
                )
            )
    return found


def compare(name: str, got: Any, expected: Any, tol: float) -> Comparison:
    """Hold `got` (array-like, torch tensor or number) to `expected`.

    Passes where |got - expected| <= tol * max(1, max|expected|), shapes are equal and NaN stands
    in the same places. Strings of numbers ("nan", "-0.0") are read as numbers.
    """
    if hasattr(got, "detach"):
        got = got.detach().cpu().numpy()
    actual, wanted = np.asarray(got, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    finite = np.isfinite(wanted)
    tolerance = tol * max(1.0, float(np.abs(wanted[finite]).max(initial=0.0)))
    same_special = actual.shape == wanted.shape and np.array_equal(
        actual[~finite], wanted[~finite], equal_nan=True
    )
    if not same_special:
        return Comparison(name, float("inf"), tolerance, False)
    error = float(np.abs(actual[finite] - wanted[finite]).max(initial=0.0))
    return Comparison(name, error, tolerance, error <= tolerance)  # a NaN of ours is not <=


def uncompared(case: Case, comparisons: Sequence[Comparison]) -> list[str]:
    """Results of the case that no comparison is named after."""

    def compared(name: str) -> bool:
        return any(
            c.array == name or c.array.startswith((name + "[", name + ".")) for c in comparisons
        )

    return [name for name in case.outputs() if not compared(name)]


def assert_agrees(case: Case, comparisons: Sequence[Comparison]) -> None:
    """All comparisons are ok; of the project's own cases every result was compared.

    Other folders may store results under names that we do not know: parity_table.py lists them.
    """
    assert comparisons, f"{case.name}: nothing was compared"
    bad = [f"{c.array}: {c.max_error:.3g} > {c.tolerance:.3g}" for c in comparisons if not c.ok]
    assert not bad, f"{case.name}: " + "; ".join(bad)
    if case.path.parent.resolve() == OWN_CASES.resolve():
        missed = uncompared(case, comparisons)
        assert not missed, f"{case.name}: not compared: {', '.join(missed)}"
