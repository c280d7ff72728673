"""Explanations as JSON lines, one an image (docs/explain.md has the fields)."""

import json
from collections.abc import Mapping

import numpy as np

from spg_pipe.explain.explanation import Explanation

_DIGITS = 9
"""Significant digits of a number: sums of hundreds still agree to 1e-6."""


def line_of(explanation: Explanation, image: int, path: str, atoms: int | None = None) -> str:
    """One image's decision as a line of JSON.

    Parameters
    ----------
    path : str
        Of the image.
    atoms : int, optional
        List only so many contributions, the strongest; `rest` has the sum of the others by
        component. Default: all.
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
        "atoms": [
            {
                **explanation.atoms[row]._asdict(),
                "contribution": _number(values[row]),
                **({"excess": _number(excess[row])} if np.isfinite(excess[row]) else {}),
            }
            for row in listed.tolist()
        ],
        "peak": {"row": peak[0], "column": peak[1], "grid": list(grid)},
        "detector": record.fingerprint,
        "protocol": record.protocol.name,
    }
    if len(listed) < len(order):
        rest = dict.fromkeys(explanation.offsets, 0.0)
        for row in order[len(listed) :].tolist():
            rest[explanation.atoms[row].component] += float(values[row])
        content["rest"] = {name: _number(value) for name, value in rest.items()}
    return json.dumps(content, ensure_ascii=True, allow_nan=False)


def _of_image(values: Mapping[str, np.ndarray], image: int) -> dict[str, float]:
    return {name: _number(each[image]) for name, each in values.items()}


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
