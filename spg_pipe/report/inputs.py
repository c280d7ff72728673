"""What the report reads: the artefacts of a recipe, each with the fingerprint that is asked for.

Metrics and Scores are there, checked by the caller. A store, a manifest, an SAE or a detector may
have been replaced or removed since; the page then says so.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spg_pipe.artefacts.record import AnyRecord, read_record
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.rules import Rule
from spg_pipe.detector.metrics_file import MetricsRecord, read_metrics
from spg_pipe.detector.record import DetectorOrigin, DetectorRecord
from spg_pipe.errors import SpgError
from spg_pipe.metrics import CurvePoint, MetricsTable, seeds_mean
from spg_pipe.recipe.params import Dataset, Direction, Params, PublishedFigure
from spg_pipe.recipe.paths import Paths

if TYPE_CHECKING:
    from spg_pipe.detector.scores import Scores
    from spg_pipe.sae.run import LayerQuality
    from spg_pipe.store.reader import FeatureStore


RunFiles = dict[tuple[str, str, int], tuple[Path, Path]]
"""(auxiliary, target, seed) → metrics file and the scores folder that it was computed from."""


@dataclass(frozen=True)
class SeedRun:
    """One detector on one target."""

    seed: int
    metrics: MetricsRecord
    curves: tuple[CurvePoint, ...]
    scores: "Scores"

    detector: DetectorOrigin
    """What the scores say of the detector."""
    rule: Rule


@dataclass(frozen=True)
class DirectionRuns:
    """All seeds of one direction."""

    direction: Direction
    dataset: Dataset
    """The target, with the root of its photographs."""
    runs: tuple[SeedRun, ...]
    missing_seeds: tuple[int, ...]
    store: "FeatureStore | None"
    manifest: Manifest | None
    published: PublishedFigure | None

    @property
    def title(self) -> str:
        """auxiliary → target"""
        return f"{self.direction.aux} → {self.direction.target}"

    @property
    def name(self) -> str:
        """The same for links and files: safe in HTML and URLs."""
        return f"{self.direction.aux}--{self.direction.target}"

    @property
    def table(self) -> MetricsTable:
        """The metrics: one seed's, or means over seeds."""
        tables = [run.metrics.table for run in self.runs]
        return tables[0] if len(tables) == 1 else seeds_mean(tables)


@dataclass(frozen=True)
class AuxiliaryRun:
    """How one detector was trained; what is gone is None or empty."""

    aux: str
    seed: int
    store: str | None
    """Fingerprint of the auxiliary set's store, from the detector."""
    sae: Path | None
    quality: "dict[str, LayerQuality]"
    """By layer; empty where the SAE is gone."""
    sae_curve: list[dict[str, str]]
    guide_curve: list[dict[str, str]]
    """Empty for contrast guides, too."""


def read_directions(params: Params, paths: Paths, runs: RunFiles) -> list[DirectionRuns]:
    """Every direction of the recipe that has metrics."""
    ways = [
        way for way in params.directions if any(key[:2] == (way.aux, way.target) for key in runs)
    ]
    return [_direction(params, paths, way, runs) for way in ways]


def _direction(
    params: Params, paths: Paths, direction: Direction, files: RunFiles
) -> DirectionRuns:
    from spg_pipe.store.reader import FeatureStore

    aux, target = direction.aux, direction.target
    seeds = [seed for seed in params.seeds if (aux, target, seed) in files]
    runs = tuple(_seed_run(*files[aux, target, seed], seed) for seed in seeds)
    dataset = params.dataset(target)
    store = FeatureStore(paths.store(target)) if paths.store(target).is_dir() else None
    if store and store.fingerprint != runs[0].scores.record.store:
        store = None
    published = [p for p in params.published if (p.aux, p.target) == (aux, target)]
    return DirectionRuns(
        direction=direction,
        dataset=dataset,
        runs=runs,
        missing_seeds=tuple(seed for seed in params.seeds if seed not in seeds),
        store=store,
        manifest=read_manifest(paths, dataset),
        published=published[0] if published else None,
    )


def read_manifest(paths: Paths, dataset: Dataset) -> Manifest | None:
    """The manifest that `prepare` saved, if it did."""
    path = paths.manifest(dataset)
    return Manifest.load(path, root=dataset.root) if path.is_file() else None


def _seed_run(path: Path, folder: Path, seed: int) -> SeedRun:
    from spg_pipe.detector.scores import Scores

    scores = Scores.load(folder)
    detector, rule = scores.record.detector, scores.record.rule
    if detector is None or rule is None:
        raise SpgError(f"{folder} was made without a detector. Run `spg-pipe score`.")
    points = read_csv(path.parent / "curves" / f"{path.stem}-categories.csv")
    curves = (CurvePoint(p["category"], p["curve"], float(p["x"]), float(p["y"])) for p in points)
    return SeedRun(seed, read_metrics(path), tuple(curves), scores, detector, rule)


def read_auxiliaries(paths: Paths, directions: Sequence[DirectionRuns]) -> list[AuxiliaryRun]:
    """The training runs behind the scores, each once, by auxiliary set and seed."""
    scored = {
        (direction.direction.aux, run.seed): run.detector
        for direction in directions
        for run in direction.runs
    }
    return [_auxiliary(paths, *key, scored[key]) for key in sorted(scored)]


def _auxiliary(paths: Paths, aux: str, seed: int, origin: DetectorOrigin) -> AuxiliaryRun:
    from spg_pipe.sae.run import SaeRecord, read_quality

    detector = _record(paths.detector(aux, seed), DetectorRecord, origin.fingerprint)
    trained = _record(paths.sae(aux, seed), SaeRecord, origin.sae.fingerprint)
    sae = paths.sae(aux, seed) if trained else None
    return AuxiliaryRun(
        aux=aux,
        seed=seed,
        store=detector.store if detector else None,
        sae=sae,
        quality=read_quality(sae) if sae else {},
        sae_curve=read_csv(sae / "curve.csv") if sae else [],
        guide_curve=read_csv(paths.detector(aux, seed) / "curve.csv") if detector else [],
    )


def _record(folder: Path, model: type[AnyRecord], wanted: str) -> AnyRecord | None:
    """The artefact's record, if it is the one with this fingerprint."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    record = read_record(path, model, "training artefact", "dvc repro")
    return record if getattr(record, "fingerprint", None) == wanted else None


def seeds_stability(runs: Sequence[AuxiliaryRun]) -> dict[str, float]:
    """Layer → how alike the dictionaries of an auxiliary's seeds are; empty for a single one."""
    from spg_pipe.sae.quality import seeds_stability as alike
    from spg_pipe.sae.run import SaeRun

    return alike([SaeRun.load(run.sae) for run in runs if run.sae])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text (a category may be called 001 or NA); none if it is absent."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
