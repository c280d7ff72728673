"""The work of `compare`, each part in a process of its own (`jobs`): making, judging, its cost."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spg_pipe.artefacts.files import read_json
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.find import find_dataset, find_store
from spg_pipe.pipeline.find_runs import find_detector
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.training import train_guides_together, train_saes
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import MetricParams, Params
from spg_pipe.recipe.protocol import protocol
from spg_pipe.study.costs import Cost, idle_memory, measured

if TYPE_CHECKING:
    from spg_pipe.bank.few_shot import Banks
    from spg_pipe.detector.make import DetectorPlan
    from spg_pipe.detector.model import Detector
    from spg_pipe.detector.scores import Scores
    from spg_pipe.sae.run import SaeRun
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.study.baselines.patchwise import Method

Score = Callable[["FeatureStore", Path], "Scores"]
"""Judges a target and writes scores to a path."""


class Made(NamedTuple):
    """A method that is ready to judge."""

    score: Score
    artefacts: tuple[str, ...] = ()
    """Fingerprints of what jobs of their own made for it: their cost is part of its cost."""


class Judged(NamedTuple):
    """What one contestant gave on one target."""

    metrics: dict[str, Any]
    """Means over categories, and what they were made under."""
    intervals: dict[str, tuple[float, float]]
    making: Cost
    """In the judging process; what `artefacts` cost comes to it."""
    scoring: Cost
    artefacts: tuple[str, ...]


def judge(
    make: Callable[[], Made],
    stores: dict[str, Path],
    places: dict[str, Path],
    metrics: MetricParams,
    *,
    bootstrap: bool,
) -> dict[str, Judged]:
    """Make a method once, and judge every target by it.

    Parameters
    ----------
    stores, places : dict of target → Path
        Its feature store, and where its scores go.
    bootstrap : bool
        Draw intervals over images, too.

    Returns
    -------
    dict of target → Judged
    """
    from spg_pipe.detector.evaluate import evaluate_scores
    from spg_pipe.metrics import flat_rows
    from spg_pipe.store.reader import FeatureStore

    start, scored = idle_memory(), {}
    with measured(start) as making:
        made = make()
    for target, path in stores.items():
        store = FeatureStore(path)
        with measured(start) as scoring:
            scores = made.score(store, places[target])
        scored[target] = scores, store, scoring
    found = {}
    for target, (scores, store, scoring) in scored.items():
        row = flat_rows(evaluate_scores(scores, store, metrics).table)[-1]
        ranges = score_intervals(scores, store) if bootstrap else {}
        found[target] = Judged(row, ranges, making, scoring, made.artefacts)
    return found


def make_sae(run: RecipeRun, aux: str, seed: int) -> dict[str, Cost]:
    """Train an SAE. Fingerprint → cost."""
    with measured(idle_memory()) as cost:
        (path,) = train_saes([run], aux, [seed])
    return _costs([path], cost)


def make_detectors(run: RecipeRun, aux: str, seeds: Sequence[int]) -> dict[str, Cost]:
    """Guides and decision of several seeds; in one pass, if they share the order of images.

    Returns
    -------
    dict of fingerprint → Cost
        A seed's share of the time, and the memory of all together.
    """
    with measured(idle_memory()) as cost:
        paths = train_guides_together([run], aux, seeds, order_seed=run.params.seeds[0])
    return _costs(paths, cost)


def make_free(published: RecipeRun, aux: str, seeds: Sequence[int]) -> dict[str, Cost]:
    """As published on ±axes instead of atoms, all seeds in one pass; costs as `make_detectors`."""
    from spg_pipe.detector.make import make_detectors as make
    from spg_pipe.study.baselines.free import free_dictionary

    store, params = find_store(published, find_dataset(published.params, aux)), published.params
    with measured(idle_memory()) as cost:
        axes = free_dictionary(store)
        plans = [_free_plan(params, axes, seed) for seed in seeds]
        with published.console.progress(f"free dense guides {aux}") as update:
            made = make(
                store,
                plans,
                device=choose_device(published.device),
                cache=published.cache,
                progress=update,
            )
    paths = [published.paths.free_detector(aux, seed) for seed in seeds]
    for path, (detector, _) in zip(paths, made, strict=True):
        detector.save(path)
    return _costs(paths, cost)


def _free_plan(params: Params, axes: "SaeRun", seed: int) -> "DetectorPlan":
    from spg_pipe.detector.make import DetectorPlan

    return DetectorPlan.of(params, axes, seed).ordered_by(params.seeds[0])


def free_is_there(published: RecipeRun, store: "FeatureStore", aux: str, seed: int) -> bool:
    """Whether `make_free` has made it from this store with these parameters."""
    from spg_pipe.decision.rules import Published
    from spg_pipe.detector.model import Detector
    from spg_pipe.study.baselines.free import free_dictionary

    params = published.params
    try:
        record = Detector.load(published.paths.free_detector(aux, seed)).record
    except SpgError:
        return False
    plan = _free_plan(params, free_dictionary(store), seed)
    found = (record.store, record.seed, record.detection, record.protocol)
    wanted = (store.fingerprint, seed, plan.method.detection, protocol(plan.method.protocol))
    rule = Published(image_score=plan.score.image_score)
    return found == wanted and (record.guides, record.rule) == (plan.guides, rule)


def _costs(paths: Sequence[Path], cost: Cost) -> dict[str, Cost]:
    each = Cost(cost.seconds / len(paths), cost.mebibytes)
    return {str(read_json(p / "config.json", str(p))["fingerprint"]): each for p in paths}


def from_recipe(run: RecipeRun, aux: str, seed: int) -> Made:
    """The recipe's own detector."""
    detector = _load(find_detector(run, aux, seed))
    made_from = (detector.fingerprint, detector.record.sae.fingerprint)
    return Made(_by_detector(run, detector), made_from)


def free_guides(published: RecipeRun, aux: str, seed: int) -> Made:
    """What `make_free` made: its axes cost nothing."""
    detector = _load(published.paths.free_detector(aux, seed))
    return Made(_by_detector(published, detector), (detector.fingerprint,))


def logistic(run: RecipeRun, aux: str, seed: int) -> Made:
    """Logistic regression on the tokens of an auxiliary set."""
    from spg_pipe.study.baselines.linear import logistic_regression

    store = find_store(run, find_dataset(run.params, aux))
    return _patchwise(run, logistic_regression(store, seed))


def unlike_its_image(run: RecipeRun) -> Made:
    """Intra-image dissimilarity."""
    from spg_pipe.study.baselines.unsupervised import dissimilarity

    return _patchwise(run, dissimilarity())


def mutual(run: RecipeRun, target: Path, seed: int) -> Made:
    """Mutual scoring of a target's images."""
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.study.baselines.mutual import mutual_scoring

    return _patchwise(run, mutual_scoring(FeatureStore(target), seed))


def bank(run: RecipeRun, normals: Sequence[Path], target: Path) -> Made:
    """Nearest neighbours in a few normal images."""
    from spg_pipe.bank.few_shot import score_few_shot

    banks, device = _banks(run, normals, target), choose_device(run.device)
    return Made(partial(score_few_shot, None, banks, device=device))


def gaussian(run: RecipeRun, normals: Sequence[Path], target: Path) -> Made:
    """Mahalanobis distance from a few normal images."""
    from spg_pipe.bank.few_shot import normals_of
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.study.baselines.mahalanobis import mahalanobis

    store = FeatureStore(target)
    return _patchwise(run, mahalanobis(normals_of(list(map(FeatureStore, normals)), store), store))


def fused(
    run: RecipeRun, normals: Sequence[Path], target: Path, distances: Path, aux: str, seed: int
) -> Made:
    """The recipe's detector with the bank as one more addend; `distances` are the bank's scores."""
    from spg_pipe.bank.few_shot import score_few_shot
    from spg_pipe.detector.scores import Scores

    banks, device = _banks(run, normals, target), choose_device(run.device)
    detector = _load(find_detector(run, aux, seed))
    alone = Scores.load(distances)
    score = partial(score_few_shot, detector, banks, alone=alone, device=device)
    return Made(score, (detector.fingerprint, detector.record.sae.fingerprint))


def _banks(run: RecipeRun, normals: Sequence[Path], target: Path) -> "Banks":
    from spg_pipe.bank.few_shot import banks_of
    from spg_pipe.store.reader import FeatureStore

    params, device = run.params, choose_device(run.device)
    stores = [FeatureStore(path) for path in normals]
    return banks_of(stores, FeatureStore(target), params.bank, device=device)


def _load(path: Path) -> "Detector":
    from spg_pipe.detector.model import Detector

    return Detector.load(path)


def _by_detector(run: RecipeRun, detector: "Detector") -> Score:
    from spg_pipe.detector.scores import score_store

    device = choose_device(run.device)
    return partial(score_store, detector, score=run.params.score, device=device)


def _patchwise(run: RecipeRun, method: "Method") -> Made:
    from spg_pipe.study.baselines.patchwise import score_patchwise

    return Made(partial(score_patchwise, method, device=choose_device(run.device)))


def score_intervals(scores: "Scores", store: "FeatureStore") -> dict[str, tuple[float, float]]:
    """Bootstrap over the target's images: metric → (low, high)."""
    from spg_pipe.datasets.manifest import MaskState
    from spg_pipe.metrics.bootstrap import CategoryImages, intervals, pixel_histograms

    table, found = scores.table, []
    for category in dict.fromkeys(table["category"]):
        chosen = np.flatnonzero(table["category"] == category)
        states = table["mask_state"].to_numpy()[chosen]

        def pairs(rows: np.ndarray = chosen) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(rows), 64):
                part = rows[start : start + 64]
                yield from zip(scores.maps(part), store.masks(part) > 0, strict=True)

        normal, anomalous = pixel_histograms(pairs(), *scores.bounds(chosen))
        known = (states != MaskState.MISSING)[:, None]
        found.append(
            CategoryImages(
                table["label"].to_numpy()[chosen],
                table["score"].to_numpy()[chosen],
                normal * known,
                anomalous * known,
            )
        )
    return {name: (one.low, one.high) for name, one in intervals(found).items()}
