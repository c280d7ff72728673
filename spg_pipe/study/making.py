"""What `compare` trains if it is not there yet, each in a job of its own, and what that costs."""

from collections.abc import Iterator, Sequence
from functools import partial

from spg_pipe.detector.make import DetectorPlan, make_detectors
from spg_pipe.detector.model import Detector
from spg_pipe.errors import DamagedError, NotThereError
from spg_pipe.pipeline.checked import checked_detector, checked_sae, is_there
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.costs import Cost, idle_memory, measured
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.training import train_guides_together, train_sae
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import GuideParams, ScoreParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.baselines import free_dictionary
from spg_pipe.study.methods import FREE, PLUS, TRAINED, Stores, auxiliaries, guides_path
from spg_pipe.study.runner import Job

Costs = dict[str, Cost]
"""Fingerprint of an artefact → what it cost to make."""


def guides_job(method: str, aux: str) -> str:
    """Name of the job that makes the guides of a method."""
    return f"guides of {method}, {aux}"


def making_jobs(
    run: RecipeRun, stores: Stores, methods: Sequence[str] = (*TRAINED, PLUS)
) -> Iterator[Job]:
    """A job for everything that methods need and is not there yet; each gives `Costs`."""
    for aux in auxiliaries(run, stores):
        store, saes = stores[aux], {s: f"SAE of {aux}, seed {s}" for s in run.params.seeds}
        for seed, name in saes.items():
            if not is_there(partial(checked_sae, run, store, aux, seed)):
                yield Job(name, partial(_make_sae, run, aux, seed))
        for method in methods:
            missing = [seed for seed in saes if not _is_made(run, store, method, aux, seed)]
            if missing:
                after = () if method == FREE else tuple(saes[seed] for seed in missing)
                work = partial(_make_guides, run, method, aux, missing)
                yield Job(guides_job(method, aux), work, after)


def _make_sae(run: RecipeRun, aux: str, seed: int) -> Costs:
    with measured(idle_memory()) as cost:
        path = train_sae(run, aux, seed)
    return {SaeRun.load(path).record.fingerprint: cost}


def _make_guides(run: RecipeRun, method: str, aux: str, seeds: Sequence[int]) -> Costs:
    """All seeds in one pass: each has a share of its time, and the memory of all.

    Guides as published see the images in one order, and so share a pass an epoch.
    """
    with measured(idle_memory()) as cost:
        if method == PLUS:
            train_guides_together([run], aux, seeds)
        else:
            store = checked_store(run, find_dataset(run.params, aux))
            plans = [_plan(run, store, method, aux, seed) for seed in seeds]
            device, cache = choose_device(run.device), run.cache
            with run.console.progress(guides_job(method, aux)) as update:
                made = make_detectors(store, plans, device=device, cache=cache, progress=update)
            for seed, (detector, _) in zip(seeds, made, strict=True):
                detector.save(guides_path(run, method, aux, seed))
    each = Cost(cost.seconds / len(seeds), cost.mebibytes)
    paths = [guides_path(run, method, aux, seed) for seed in seeds]
    return {Detector.load(path).fingerprint: each for path in paths}


def _plan(run: RecipeRun, store: FeatureStore, method: str, aux: str, seed: int) -> DetectorPlan:
    """The published method, on the recipe's SAE or on ±axes in the place of its atoms."""
    axes = method == FREE
    saes = free_dictionary(store) if axes else SaeRun.load(checked_sae(run, store, aux, seed))
    guides, score = GuideParams(kind="trained"), ScoreParams(rule="published", image_score="max")
    params = run.params.model_copy(update={"guides": guides, "score": score})
    return DetectorPlan.of(params, saes, seed).ordered_by(params.seeds[0])


def _is_made(run: RecipeRun, store: FeatureStore, method: str, aux: str, seed: int) -> bool:
    """Whether it is there, made from this store and SAE with these settings."""
    if method == PLUS:
        return is_there(partial(checked_detector, run, aux, seed))
    try:
        record = Detector.load(guides_path(run, method, aux, seed)).record
        plan = _plan(run, store, method, aux, seed)
    except (NotThereError, DamagedError):
        return False
    wanted = (plan.saes.record.fingerprint, seed, plan.guides, plan.method.detection)
    held = (record.sae.fingerprint, record.seed, record.guides, record.detection)
    made_as = (record.store, record.protocol.name)
    return held == wanted and made_as == (store.fingerprint, plan.method.protocol)
