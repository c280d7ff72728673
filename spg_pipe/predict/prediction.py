"""What `predict` says of one image, and as rows of a file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spg_pipe.bank.few_shot import KNOWN


@dataclass(frozen=True)
class Prediction:
    """The result for one image."""

    path: str
    score: float
    """Image score of the detector's recipe; higher is more anomalous. Not a probability."""
    height: int
    width: int
    peak_row: int
    """Row of the map's maximum, pixels of the original image."""
    peak_column: int
    overlay: str
    """File of the heat map, relative to the output folder."""
    protocol: str
    """The method's protocol (docs/method.md §5)."""
    parts: dict[str, float]
    """What the score is made of: the other columns of `judging.Judged`."""
    sees: str = ""
    """Where normal images of the target were used: that it is few-shot, and how many."""
    among_normals: bool = False
    """The image is one of these itself, so that the bank has nothing against it."""


_LAST = ("parts", "sees", "among_normals")
HEADER = ",".join(name for name in Prediction.__dataclass_fields__ if name not in _LAST)
"""What the first line of every scores.csv begins with; names of the parts follow."""


def as_row(found: Prediction) -> dict[str, Any]:
    """A prediction as one flat row; of the last columns those that a few-shot score has."""
    row = asdict(found)
    parts, sees, known = (row.pop(name) for name in _LAST)
    return row | parts | ({"sees": sees, KNOWN: known} if sees else {})


def as_csv(rows: Sequence[Prediction]) -> str:
    """Predictions as CSV text with a header."""
    stream = io.StringIO()
    content = [as_row(row) for row in rows]
    writer = csv.DictWriter(stream, list(content[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(content)
    return stream.getvalue()
