"""Explanations as JSON lines, one an image (docs/explain.md has the fields)."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from spg_pipe.explain.explanation import AtomRow, Explanation

_DIGITS = 9
"""Significant digits of a number: sums of hundreds still agree to 1e-6."""


def line_of(
    explanation: Explanation,
    image: int,
    path: str,
    atoms: int | None = None,
    about: Mapping[str, object] | None = None,
) -> str:
    """One image's decision as a line of JSON.

    Of `atoms` only so many contributions are listed, the strongest; `rest` has the sum of the
    others by component. `about` is what else is to be said of the image.
    """
    order = explanation.strongest(image)
    values, excess = explanation.contributions[image], explanation.excess[image]
    listed = order[:atoms]
    grid = explanation.finest_grid
    peak = np.floor(explanation.peaks[image] * grid).astype(int).tolist()
    record = explanation.detector.record
    content: dict[str, object] = {
        "path": path,
        "score": _number(explanation.scores[image]),
        "bias": _number(explanation.bias),
        "components": _of_image(explanation.components, image),
        "offsets": _of_image(explanation.offsets, image),
        "peak": {"row": peak[0], "column": peak[1], "grid": list(grid)},
        "detector": record.fingerprint,
        "protocol": record.protocol.name,
        **(about or {}),
    }
    if len(listed) < len(order):
        rest = dict.fromkeys(explanation.offsets, 0.0)
        for row in order[len(listed) :].tolist():
            rest[explanation.atoms[row].component] += float(values[row])
        content["rest"] = {name: _number(value) for name, value in rest.items()}
    starts, apart = _texts(explanation.atoms), excess.tolist()
    # Not through a dictionary for each of some hundred atoms: half a millisecond an image.
    atoms_text = ", ".join(
        f"{starts[row]}{value:.{_DIGITS}g}"
        + (f', "excess": {apart[row]:.{_DIGITS}g}}}' if math.isfinite(apart[row]) else "}")
        for row, value in zip(listed.tolist(), values[listed].tolist(), strict=True)
    )
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    return f'{text[:-1]}, "atoms": [{atoms_text}]}}'


@lru_cache(maxsize=4)
def _texts(atoms: tuple[AtomRow, ...]) -> list[str]:
    """How each atom's object begins, up to the contribution's value."""
    return [f'{json.dumps(row._asdict())[:-1]}, "contribution": ' for row in atoms]


def _of_image(values: Mapping[str, np.ndarray], image: int) -> dict[str, float]:
    return {name: _number(each[image]) for name, each in values.items()}


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
