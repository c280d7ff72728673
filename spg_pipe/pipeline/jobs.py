"""What the workers of a cluster do for scores and metrics; of stores it is `features.ShardJob`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spg_pipe.artefacts.digests import require_files
from spg_pipe.datasets.manifest import Manifest
from spg_pipe.decision.calibration import Calibration
from spg_pipe.detector.evaluate import JudgedCategory, categories_of, category_judge
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Ignored, Part, Scores, chunks_of, judge_of, parts_of
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Update
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import MetricParams, ScoreParams
from spg_pipe.recipe.places import Place
from spg_pipe.store.reader import FeatureStore

if TYPE_CHECKING:
    from spg_pipe.pipeline.cluster import Workers


@dataclass(frozen=True)
class ScoreJob:
    """Zero-shot scores of one detector: `Job` of rows."""

    detector: Detector
    store: Place
    fingerprint: str
    """The store's."""
    score: ScoreParams | None
    ignored: Ignored | None
    device: str

    def open(self) -> Callable[[range], Part]:
        """Open the store. A unit is one of its `chunks_of`."""
        store = _same_store(self.store, self.fingerprint)
        judge = judge_of(self.detector, store, self.score, self.ignored)
        device = choose_device(self.device)
        return lambda rows: next(parts_of(store, judge, rows, device=device))


@dataclass(frozen=True)
class EvaluateJob:
    """Metrics of one run: `Job` of a category."""

    scores: Scores
    store: Place
    params: MetricParams
    manifest: Manifest | None
    calibration: Calibration | None

    def open(self) -> Callable[[str], JudgedCategory]:
        """Open the store, check the maps. A unit is one of the scores' `categories_of`."""
        scores, store = self.scores, _same_store(self.store, self.scores.record.store)
        require_files(scores.path, scores.record.files_sha256, "scores folder", "spg-pipe score")
        return category_judge(scores, store, self.params, self.manifest, self.calibration)


def _same_store(place: Place, fingerprint: str) -> FeatureStore:
    """The store of the client, which a worker may find to be another."""
    store = FeatureStore(place)
    if store.fingerprint != fingerprint:
        raise SpgError(
            f"{place} is another store for a worker than for this process: they need one file "
            "system, with the same paths."
        )
    return store


@contextmanager
def scored(
    workers: "Workers", job: ScoreJob, store: FeatureStore, update: Update
) -> Iterator[Iterator[Part]]:
    """All parts of a store's scores as they come; `update` is told how many images they are."""

    def parts() -> Iterator[Part]:
        done = 0
        for rows, part in results(chunks_of(store)):
            done += len(rows)
            update(done, len(store))
            yield part

    with workers.serving(job) as results:
        yield parts()


@contextmanager
def evaluated(workers: "Workers", job: EvaluateJob) -> Iterator[Iterator[JudgedCategory]]:
    """All categories of a run's scores as they come."""
    scores, manifest = job.scores, job.manifest
    job = replace(
        job,
        scores=replace(scores, path=scores.path.resolve()),
        manifest=manifest and replace(manifest, root=manifest.root.resolve()),
    )
    with workers.serving(job) as results:
        yield (judged for _, judged in results(categories_of(scores)))
