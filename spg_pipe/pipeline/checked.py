"""The artefacts of a recipe, checked: each is at its path (`run.paths`) and fits, or an error.

There is no search. What does not fit is named with both values and the command that mends it. Where
an input of a missing artefact is itself missing or does not fit, that is told instead: it comes
first. Errors are `NotThereError`, or `DamagedError` for what is no whole artefact.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from spg_pipe.artefacts.record import read_record
from spg_pipe.decision.rules import Rule
from spg_pipe.detector.metrics_file import read_metrics
from spg_pipe.detector.record import DetectorOrigin, DetectorRecord, ScoresRecord
from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.guides.kinds import guides_of
from spg_pipe.pipeline.checked_store import (
    Pairs,
    absent,
    backbone_differences,
    checked_store,
    differences,
    made_otherwise,
    named_input,
    refused,
)
from spg_pipe.pipeline.datasets import split_name
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Dataset, Direction, Params
from spg_pipe.sae.run import SaeRecord
from spg_pipe.store.reader import FeatureStore

_Checked = TypeVar("_Checked")
_Record = TypeVar("_Record", SaeRecord, DetectorRecord, ScoresRecord)


def checked_sae(run: RecipeRun, store: FeatureStore, aux: str, seed: int) -> Path:
    """The SAE of the recipe's `sae` section, trained on this store."""
    given = named_input("store", store.path, run.paths.store(aux), store.fingerprint)
    path = run.paths.sae(aux, seed, given)

    def pairs(record: SaeRecord) -> Pairs:
        return {
            "method.protocol": (run.params.method.protocol, record.protocol.name),
            "sae": (run.params.sae, record.sae),
            "feature store": (store.fingerprint, record.store),
        }

    _require(run, path, SaeRecord, pairs, f"train-sae --aux {aux} --seed {seed}")
    return path


def checked_detector(run: RecipeRun, aux: str, seed: int) -> DetectorRecord:
    """The detector of the recipe's sections, made from `aux`: what it says of itself.

    Its training data need not be here; where the store is, the detector must be made from it.
    """

    def pairs(record: DetectorRecord) -> Pairs:
        store = _where_here(run, lambda: checked_store(run, aux).fingerprint, record.store)
        return _fitted(run.params, record.origin, record.rule) | {"feature store": store}

    def sae() -> Path:
        store = _first(lambda: checked_store(run, aux), f"train-sae --aux {aux} --seed {seed}")
        return checked_sae(run, store, aux, seed)

    path, command = run.paths.detector(aux, seed), f"train-guides --aux {aux} --seed {seed}"
    return _require(run, path, DetectorRecord, pairs, command, sae)


def checked_scores(run: RecipeRun, dataset: Dataset, aux: str, seed: int) -> ScoresRecord:
    """The zero-shot scores of a target by the recipe's sections: what they say of themselves.

    Where the target's store or the detector is, the scores must have been made from it.
    """
    params = run.params
    keys = {"rule"} if params.score.rule == "additive" else {"rule", "image_score"}

    def detector() -> str:
        return checked_detector(run, aux, seed).fingerprint

    def pairs(record: ScoresRecord) -> Pairs:
        if record.detector is None or record.rule is None:
            return {"detector": ("one of the recipe", None)}
        store = _where_here(run, lambda: checked_store(run, dataset).fingerprint, record.store)
        return _fitted(params, record.detector, record.rule) | {
            "score": (params.score.model_dump(include=keys), record.rule.model_dump(include=keys)),
            "split": (dataset.split, record.split),
            "feature store": store,
            "detector": _where_here(run, detector, record.detector.fingerprint),
        }

    path = run.paths.scores(aux, dataset, seed)
    command = f"score --split {split_name(params, dataset)} --aux {aux} --seed {seed}"
    return _require(run, path, ScoresRecord, pairs, command, detector)


def checked_metrics(run: RecipeRun, way: Direction, seed: int) -> tuple[Path, Path]:
    """The metrics of a direction by the recipe's `metrics` section, and the scores behind them."""
    scores = checked_scores(run, run.params.dataset(way.target), way.aux, seed).fingerprint
    folder = run.paths.scores(way.aux, way.target, seed)
    path = run.paths.metrics(way.aux, way.target, seed)
    command = f"evaluate --split {way.target} --aux {way.aux} --seed {seed}"
    if not path.is_file():
        raise refused(f"There are no metrics of {folder}: {path} does not exist.", command)
    held, metrics = read_metrics(path).provenance, run.params.metrics
    pairs = {"scores": (scores, held.scores), "metrics": (metrics, held.metrics)}
    if faults := differences(pairs):
        raise refused(made_otherwise(path, faults), command)
    return path, folder


def finished_metrics(run: RecipeRun) -> dict[tuple[str, str, int], tuple[Path, Path]]:
    """`checked_metrics` of every direction and seed: auxiliary set, target, seed → files.

    What is missing or does not fit is told and left out; an `SpgError` if something is damaged or
    nothing is left.
    """
    finished, missing = {}, []
    for way, seed in itertools.product(run.params.directions, run.params.seeds):
        try:
            finished[way.aux, way.target, seed] = checked_metrics(run, way, seed)
        except DamagedError:  # that is mended before anything is said of it
            raise
        except SpgError as error:
            missing.append(str(error))
    if not finished:
        raise SpgError(missing[0] if missing else "The recipe has no directions to report.")
    for message in missing:
        run.console.say(f"Left out: {message}")
    return finished


def is_there(check: Callable[[], object]) -> bool:
    """Whether an artefact is there and fits, as far as a check looks."""
    try:
        check()
    except (NotThereError, DamagedError):
        return False
    return True


def _require(
    run: RecipeRun,
    path: Path,
    model: type[_Record],
    pairs: Callable[[_Record], Pairs],
    command: str,
    inputs: Callable[[], object] = lambda: None,
) -> _Record:
    """The record of an artefact that fits; or raise what is wrong with it, or with its inputs."""
    fault = absent(run, path)
    if (path / "config.json").is_file():
        what = str(model.model_fields["kind"].default)
        record = read_record(path / "config.json", model, what, f"spg-pipe {command}")
        faults = differences(pairs(record)) + backbone_differences(record.backbone, run.params)
        if not faults:
            return record
        fault = made_otherwise(path, faults)
    _first(inputs, command)
    raise refused(fault, command)


def _first(checked: Callable[[], _Checked], command: str) -> _Checked:
    """An input that a command needs; the command comes after those that make it."""
    try:
        return checked()
    except NotThereError as error:
        raise NotThereError(f"{error} Then `spg-pipe {command}`.", command=error.command) from None


def _where_here(run: RecipeRun, fingerprint: Callable[[], str], held: str) -> tuple[object, object]:
    """The input at hand and the one held; the latter twice where it is not here or does not fit."""
    try:
        return fingerprint(), held
    except SpgError as error:
        run.console.detail(f"not checked against an input: {error}")
        return held, held


def _fitted(params: Params, origin: DetectorOrigin, rule: Rule) -> dict[str, tuple[object, object]]:
    """What a recipe and a detector say about fitting, under the names that messages use."""
    pairs: dict[str, tuple[object, object]] = {
        "method.protocol": (params.method.protocol, origin.protocol.name),
        "sae": (params.sae, origin.sae.params),
        "guides": (guides_of(params.guides), origin.guides),
        "method.detection": (params.method.detection, origin.detection),
    }
    if params.score.rule == "additive":
        weights = rule.weights if rule.rule == "additive" else None
        pairs["decision"] = (params.decision, weights)
    return pairs
