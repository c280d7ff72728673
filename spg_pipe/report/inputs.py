"""What the report reads: the artefacts of a recipe, each with the fingerprint that is asked for.

Metrics and Scores are there, checked by the caller. A store, an SAE or a detector may have been
replaced or removed since; the page then says so.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from spg_pipe.artefacts.digests import CURVE, read_beside
from spg_pipe.artefacts.reading import reading
from spg_pipe.artefacts.record import AnyRecord, read_record
from spg_pipe.datasets.layouts.catalogue import honours_exif
from spg_pipe.decision.rules import Rule
from spg_pipe.detector.metrics_file import MetricsRecord, read_metrics
from spg_pipe.detector.record import DetectorOrigin, DetectorRecord
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.metrics import MetricsTable, seeds_mean
from spg_pipe.recipe.params import Dataset, Direction, Params, PublishedFigure
from spg_pipe.recipe.paths import Paths
from spg_pipe.sae.quality import seeds_stability
from spg_pipe.sae.run import LayerQuality, SaeRecord, SaeRun, read_quality
from spg_pipe.store.files import is_there
from spg_pipe.store.reader import FeatureStore

RunFiles = dict[tuple[str, str, int], tuple[Path, Path]]
"""(auxiliary, target, seed) → metrics file and the scores folder that it was computed from."""


@dataclass(frozen=True)
class SeedRun:
    """One detector on one target."""

    seed: int
    metrics: MetricsRecord
    curves: "pd.DataFrame | None"
    """category, curve ("roc", "pr" or "pro"), x, y."""
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
    """The target's, if it is there and was scored: masks come from it."""
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

    @property
    def exif(self) -> bool:
        """Whether photographs are turned as their EXIF says, as they were when tokens were made."""
        protocol = self.runs[0].detector.protocol
        return honours_exif(self.dataset.layout, protocol.exif_of_own_images)


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
    sae_curve: "pd.DataFrame | None"
    guide_curve: "pd.DataFrame | None"
    """Trained guides alone have one."""


def read_directions(params: Params, paths: Paths, files: RunFiles) -> list[DirectionRuns]:
    """Every direction of the recipe that has metrics."""
    directions = []
    for way in params.directions:
        seeds = [seed for seed in params.seeds if (way.aux, way.target, seed) in files]
        if not seeds:
            continue
        runs = [_seed_run(*files[way.aux, way.target, seed], seed) for seed in seeds]
        path = paths.store(way.target)
        store = FeatureStore(path) if is_there(path) else None
        if store and store.fingerprint != runs[0].scores.record.store:
            store = None
        published = [p for p in params.published if (p.aux, p.target) == (way.aux, way.target)]
        directions.append(
            DirectionRuns(
                direction=way,
                dataset=params.dataset(way.target),
                runs=tuple(runs),
                missing_seeds=tuple(seed for seed in params.seeds if seed not in seeds),
                store=store,
                published=published[0] if published else None,
            )
        )
    return directions


def _seed_run(path: Path, folder: Path, seed: int) -> SeedRun:
    scores = Scores.load(folder)
    detector, rule = scores.record.detector, scores.record.rule
    if detector is None or rule is None:
        raise SpgError(f"{folder} was made without a detector. Run `spg-pipe score`.")
    metrics, name = read_metrics(path), f"curves/{path.stem}-categories.csv"
    curves = _curve(path.parent, name, metrics.files_sha256, "table of metrics")
    return SeedRun(seed, metrics, curves, scores, detector, rule)


def read_auxiliaries(
    paths: Paths, directions: Sequence[DirectionRuns]
) -> dict[tuple[str, int], AuxiliaryRun]:
    """The training runs behind the scores, each once, by auxiliary set and seed."""
    scored = {(way.direction.aux, run.seed): run.detector for way in directions for run in way.runs}
    return {key: _auxiliary(paths, *key, scored[key]) for key in sorted(scored)}


def _auxiliary(paths: Paths, aux: str, seed: int, origin: DetectorOrigin) -> AuxiliaryRun:
    guides, sae = paths.detector(aux, seed), paths.sae(aux, seed)
    detector = _record(guides, DetectorRecord, origin.fingerprint)
    trained = _record(sae, SaeRecord, origin.sae.fingerprint)
    quality = read_quality(sae) if trained else None
    return AuxiliaryRun(
        aux=aux,
        seed=seed,
        store=detector.store if detector else None,
        sae=sae if trained else None,
        quality=quality.layers if quality else {},
        sae_curve=_curve(sae, CURVE, quality.files_sha256) if quality else None,
        guide_curve=_curve(guides, CURVE, detector.files_sha256) if detector else None,
    )


def _record(folder: Path, model: type[AnyRecord], wanted: str) -> AnyRecord | None:
    """The artefact's record, if it is the one with this fingerprint."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    record = read_record(path, model, "training artefact", "dvc repro")
    return record if getattr(record, "fingerprint", None) == wanted else None


def _curve(
    folder: Path, name: str, digests: Mapping[str, str], what: str = "training artefact"
) -> "pd.DataFrame | None":
    """A CSV file, if it is there and has rows; a category or a layer may be called 001 or NA."""
    content = read_beside(folder, name, digests, what, "dvc repro")
    if content is None or not content.strip():  # no rows: no category has a mask
        return None
    kinds = {"category": str, "layer": str}
    with reading(folder / name, what, "dvc repro"):
        return pd.read_csv(io.BytesIO(content), dtype=kinds, keep_default_na=False)


def stability(runs: Sequence[AuxiliaryRun]) -> dict[str, float]:
    """Layer → how alike the dictionaries of an auxiliary's seeds are; empty for a single one."""
    return seeds_stability([SaeRun.load(run.sae) for run in runs if run.sae])
