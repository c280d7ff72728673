"""What the report reads: every artefact of a recipe, matched by fingerprint, never by name alone.

Metrics and Scores must be there. A store, a manifest, an SAE or a detector may have been replaced
or removed since; the page then says so.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.artefacts.files import read_json
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.errors import SpgError
from spg_pipe.metrics import MetricsTable, seeds_mean
from spg_pipe.recipe.params import Dataset, Direction, Params, PublishedFigure
from spg_pipe.recipe.paths import Paths

if TYPE_CHECKING:
    from spg_pipe.detector.metrics_file import Provenance
    from spg_pipe.detector.record import ScoresRecord
    from spg_pipe.detector.scores import Scores
    from spg_pipe.store.reader import FeatureStore


RunFiles = dict[tuple[str, str, int], tuple[Path, Path]]
"""(auxiliary, target, seed) → metrics file and scores folder."""


@dataclass(frozen=True)
class SeedRun:
    """One detector on one target."""

    seed: int
    table: MetricsTable
    curves: list[dict[str, str]]
    """Columns category, curve, x, y."""
    scores: "Scores"
    provenance: "Provenance"


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
    def table(self) -> MetricsTable:
        """The metrics: one seed's, or means over seeds."""
        if len(self.runs) == 1:
            return self.runs[0].table
        return seeds_mean([run.table for run in self.runs])


@dataclass(frozen=True)
class AuxiliaryRun:
    """How one detector was trained."""

    aux: str
    seed: int
    detector: dict[str, Any] | None
    """config.json; None where the detector is gone."""
    sae: dict[str, Any] | None
    quality: dict[str, Any]
    """Layer → R², L0, shares of latents, tokens seen; empty where the SAE is gone."""
    sae_folder: Path | None
    sae_curve: list[dict[str, str]]
    guide_curve: list[dict[str, str]]


def read_directions(
    params: Params, paths: Paths, runs: RunFiles | None = None
) -> list[DirectionRuns]:
    """Every direction of the recipe that has metrics: those of `runs`, or in the recipe's places.

    Raises
    ------
    SpgError
        If none has, or metrics do not belong to the scores that are there.
    """
    files = _in_place(params, paths) if runs is None else runs
    found = [_direction(params, paths, direction, files) for direction in params.directions]
    with_runs = [direction for direction in found if direction.runs]
    if not with_runs:
        first = params.directions[0]
        place = paths.metrics(first.aux, first.target, params.seeds[0])
        raise SpgError(
            f"There are no metrics to report: {place} does not exist, nor do those of the other "
            "directions and seeds. Run `spg-pipe evaluate`, or the whole pipeline with "
            "`dvc repro`."
        )
    return with_runs


def missing_directions(params: Params, found: Sequence[DirectionRuns]) -> list[Direction]:
    """Directions of the recipe without metrics."""
    have = [runs.direction for runs in found]
    return [direction for direction in params.directions if direction not in have]


def _direction(
    params: Params, paths: Paths, direction: Direction, files: RunFiles
) -> DirectionRuns:
    from spg_pipe.store.reader import FeatureStore

    keys = [(direction.aux, direction.target, seed) for seed in params.seeds]
    runs = [_seed_run(*files[key], key) if key in files else None for key in keys]
    there = tuple(run for run in runs if run is not None)
    dataset = params.dataset(direction.target)
    store = None
    if there:
        wanted = there[0].scores.record.store
        folder = _by_fingerprint(paths.store(dataset.name), wanted, "zarr.json")
        store = FeatureStore(folder) if folder else None
    return DirectionRuns(
        direction=direction,
        dataset=dataset,
        runs=there,
        missing_seeds=tuple(s for s, run in zip(params.seeds, runs, strict=True) if run is None),
        store=store,
        manifest=read_manifest(paths, dataset),
        published=next(
            (p for p in params.published if (p.aux, p.target) == (direction.aux, dataset.name)),
            None,
        ),
    )


def read_manifest(paths: Paths, dataset: Dataset) -> Manifest | None:
    """The manifest that `prepare` saved, if it did."""
    path = paths.manifest(dataset)
    return Manifest.load(path, root=dataset.root) if path.is_file() else None


def _in_place(params: Params, paths: Paths) -> RunFiles:
    """The metrics in the recipe's own places, and the places of their scores."""
    keys = [(d.aux, d.target, seed) for d in params.directions for seed in params.seeds]
    places = {key: (paths.metrics(*key), paths.scores(*key)) for key in keys}
    return {key: place for key, place in places.items() if place[0].is_file()}


def _seed_run(path: Path, folder: Path, key: tuple[str, str, int]) -> SeedRun:
    from spg_pipe.detector.metrics_file import read_metrics
    from spg_pipe.detector.scores import Scores

    _, target, seed = key
    record = read_metrics(path)
    wanted = record.provenance.scores
    scores = Scores.load(folder) if folder.is_dir() else None
    if scores is None or scores.record.fingerprint != wanted:
        raise SpgError(
            f"{path} was computed from scores with fingerprint {wanted[:8]}, and {folder} does not "
            f"hold them: they were replaced or removed. Run `spg-pipe score --split {target}` and "
            f"`spg-pipe evaluate --split {target}` again."
        )
    curves = path.parent / "curves" / f"{path.stem}-categories.csv"
    return SeedRun(seed, record.table, read_csv(curves), scores, record.provenance)


def read_auxiliaries(paths: Paths, directions: Sequence[DirectionRuns]) -> list[AuxiliaryRun]:
    """The training runs behind the scores, each once, by auxiliary set and seed."""
    scored = {
        (direction.direction.aux, run.seed): run.scores.record
        for direction in directions
        for run in direction.runs
    }
    return [_auxiliary(paths, *key, scored[key]) for key in sorted(scored)]


def _auxiliary(paths: Paths, aux: str, seed: int, scored: "ScoresRecord") -> AuxiliaryRun:
    origin = scored.detector
    wanted = origin.fingerprint if origin else ""
    detector = _by_fingerprint(paths.detector(aux, seed), wanted, "config.json")
    wanted = origin.sae.fingerprint if origin else ""
    sae = _by_fingerprint(paths.sae(aux, seed), wanted, "config.json")
    return AuxiliaryRun(
        aux=aux,
        seed=seed,
        detector=read_json(detector / "config.json", "Detector") if detector else None,
        sae=read_json(sae / "config.json", "Sparse autoencoder") if sae else None,
        quality=read_json(sae / "quality.json", "Sparse autoencoder") if sae else {},
        sae_folder=sae,
        sae_curve=read_csv(sae / "curve.csv") if sae else [],
        guide_curve=read_csv(detector / "curve.csv") if detector else [],
    )


def seeds_stability(runs: Sequence[AuxiliaryRun]) -> dict[str, float]:
    """Layer → how alike the dictionaries of an auxiliary's seeds are; empty for a single one."""
    from spg_pipe.sae.quality import seeds_stability as alike
    from spg_pipe.sae.run import SaeRun

    return alike([SaeRun.load(run.sae_folder) for run in runs if run.sae_folder])


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text (a category may be called 001 or NA); none if it is absent."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _by_fingerprint(first: Path, wanted: str, document: str) -> Path | None:
    """The artefact with this fingerprint: in the pipeline's place or beside it."""
    for folder in (first, *sorted(first.parent.glob("*"))):
        if (folder / document).is_file():
            content = read_json(folder / document, "Artefact")
            content = content.get("attributes", content)
            if isinstance(content, dict) and content.get("fingerprint") == wanted:
                return folder
    return None
