"""The Metrics artefact: one JSON file with a table and what it was computed from."""

from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from spg_pipe.artefacts.record import FigureOrNaN, FileName, Name, Record, read_record
from spg_pipe.detector.record import Auxiliary
from spg_pipe.guides.kinds import Guides
from spg_pipe.metrics import MetricsRow, MetricsTable, RowContext, RowCounts
from spg_pipe.recipe.params import MetricParams


class RowRecord(Record):
    """A `MetricsRow`; an undefined metric is null."""

    category: str
    accumulator: str
    metrics: dict[str, FigureOrNaN]
    counts: RowCounts
    pixel_error_bound: float
    thresholds: dict[str, FigureOrNaN]
    categories: dict[str, int]


class Provenance(Record):
    """Where metrics come from; None: the method has no such thing."""

    scores: str
    """Fingerprint."""
    store: str
    """Fingerprint of the target's store."""
    detector: str | None
    """Fingerprint."""
    metrics: MetricParams
    calibration: str | None = None
    """Fingerprint of the file with the thresholds, if there was one."""
    method: str
    supervision: str
    seed: int | None
    auxiliary: Auxiliary | None
    sae_tokens_seen: dict[str, int] | None
    """Layer → tokens."""
    guides: Guides | None
    licences: tuple[str, ...]
    versions: dict[str, str]


class MetricsRecord(Record):
    """The metrics of one detector on one target."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"files_sha256"})
    kind: Literal["metrics"] = "metrics"
    format: Literal[2] = 2
    context: RowContext
    mean: RowRecord
    categories: dict[str, RowRecord]
    provenance: Provenance
    files_sha256: dict[FileName, Name] = Field(default_factory=dict)
    """Of the CSV files and of `means`, by their paths from the folder of this file."""

    @classmethod
    def of(
        cls, table: MetricsTable, provenance: Provenance, digests: dict[str, str]
    ) -> "MetricsRecord":
        """The record of a table of one seed, with the digests of the files beside it."""
        return cls(
            context=table.context,
            mean=_record(table.mean),
            categories={row.category: _record(row) for row in table.categories},
            provenance=provenance,
            files_sha256=digests,
        )

    @property
    def table(self) -> MetricsTable:
        """The table that the file holds."""
        rows = (_row(record) for record in self.categories.values())
        return MetricsTable(self.context, tuple(rows), _row(self.mean))


def read_metrics(path: Path) -> MetricsRecord:
    """Read a metrics file; an `SpgError` if it is missing or damaged."""
    return read_record(path, MetricsRecord, "table of metrics", "spg-pipe evaluate")


def _record(row: MetricsRow) -> RowRecord:
    fields = asdict(row)
    del fields["deviations"]  # of several seeds, which no file holds
    return RowRecord(**fields)


def _row(record: RowRecord) -> MetricsRow:
    return MetricsRow(**dict(record))
