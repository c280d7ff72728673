"""The artefacts of a recipe, checked: each is at its path (`run.paths`) and fits, or an error.

There is no search. What does not fit is named with both values and the command that mends it. Where
an input of a missing artefact is itself missing or does not fit, that is told instead: it comes
first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spg_pipe.artefacts.record import read_record
from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.pipeline.checked_store import (
    Values,
    backbone_differences,
    checked_store,
    differences,
    made_otherwise,
    refused,
)
from spg_pipe.pipeline.datasets import find_dataset, split_name
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Dataset, Direction, Params

if TYPE_CHECKING:
    from spg_pipe.detector.record import DetectorOrigin, DetectorRecord, ScoresRecord
    from spg_pipe.guides.kinds import Guides
    from spg_pipe.sae.run import SaeRecord
    from spg_pipe.store.reader import FeatureStore

_Checked = TypeVar("_Checked")
_Record = TypeVar("_Record", "SaeRecord", "DetectorRecord", "ScoresRecord")


def checked_sae(run: RecipeRun, store: "FeatureStore", aux: str, seed: int) -> Path:
    """The SAE of the recipe's `sae` section, trained on this store.

    Raises
    ------
    NotThereError, DamagedError
        If there is none that fits.
    """
    from spg_pipe.sae.run import SaeRecord

    given = {} if store.path == run.paths.store(aux) else {"store": store.fingerprint}
    path = run.paths.sae(aux, seed, given)
    wanted = {
        "seed": seed,
        "method.protocol": run.params.method.protocol,
        "sae": run.params.sae,
        "feature store": store.fingerprint,
    }
    _require(run, path, SaeRecord, _of_sae, wanted, f"train-sae --aux {aux} --seed {seed}")
    return path


def checked_detector(run: RecipeRun, aux: str, seed: int) -> Path:
    """The detector of the recipe's sections, made from `aux`.

    Its training data need not be here; where the store is, the detector must be made from it.

    Raises
    ------
    NotThereError, DamagedError
        If there is none that fits.
    """
    _detector(run, aux, seed)
    return run.paths.detector(aux, seed)


def _detector(run: RecipeRun, aux: str, seed: int) -> "DetectorRecord":
    from spg_pipe.detector.record import DetectorRecord

    command = f"train-guides --aux {aux} --seed {seed}"
    wanted = _fitted(run.params, seed)
    wanted |= _where_here(run, "feature store", lambda: _aux_store(run, aux).fingerprint)

    def sae() -> Path:
        store = _first(lambda: _aux_store(run, aux), f"train-sae --aux {aux} --seed {seed}")
        return checked_sae(run, store, aux, seed)

    path = run.paths.detector(aux, seed)
    return _require(run, path, DetectorRecord, _of_detector, wanted, command, sae)


def checked_scores(run: RecipeRun, dataset: Dataset, aux: str, seed: int) -> Path:
    """The zero-shot scores of a target by the recipe's sections.

    Where the target's store or the detector is, the scores must have been made from it.

    Raises
    ------
    NotThereError, DamagedError
        If there are none that fit.
    """
    _scores(run, dataset, aux, seed)
    return run.paths.scores(aux, dataset, seed)


def _scores(run: RecipeRun, dataset: Dataset, aux: str, seed: int) -> "ScoresRecord":
    from spg_pipe.detector.record import ScoresRecord

    rule = {"rule"} if run.params.score.rule == "additive" else {"rule", "image_score"}
    wanted = _fitted(run.params, seed) | {
        "score": run.params.score.model_dump(mode="json", include=rule),
        "auxiliary": aux,
        "part of the dataset": None,
        "normal images of the target": None,
        "dataset": dataset.name,
        "split": dataset.split,
    }
    wanted |= _where_here(run, "feature store", lambda: checked_store(run, dataset).fingerprint)
    wanted |= _where_here(run, "detector", lambda: _detector(run, aux, seed).fingerprint)
    return _require(
        run,
        run.paths.scores(aux, dataset, seed),
        ScoresRecord,
        _of_scores,
        wanted,
        f"score --split {split_name(run.params, dataset)} --aux {aux} --seed {seed}",
        lambda: _detector(run, aux, seed),
    )


def checked_metrics(run: RecipeRun, direction: Direction, seed: int) -> tuple[Path, Path]:
    """The metrics of a direction by the recipe's `metrics` section, and the scores behind them.

    Raises
    ------
    NotThereError, DamagedError
        If there are none that fit.
    """
    from spg_pipe.detector.metrics_file import read_metrics

    dataset = find_dataset(run.params, direction.target)
    scores = _scores(run, dataset, direction.aux, seed)
    folder = run.paths.scores(direction.aux, dataset, seed)
    path = run.paths.metrics(direction.aux, dataset, seed)
    command = f"evaluate --split {direction.target} --aux {direction.aux} --seed {seed}"
    if not path.is_file():
        raise refused(f"There are no metrics of {folder}: {path} does not exist.", command)
    held = read_metrics(path).provenance
    faults = differences(
        {"scores": scores.fingerprint, "metrics": run.params.metrics},
        {"scores": held.scores, "metrics": held.metrics},
    )
    if faults:
        raise refused(made_otherwise(path, faults), command)
    return path, folder


def _require(
    run: RecipeRun,
    path: Path,
    model: type[_Record],
    values_of: Callable[[_Record], Values],
    wanted: Values,
    command: str,
    inputs: Callable[[], object] = lambda: None,
) -> _Record:
    """The record of an artefact that fits; or raise what is wrong with it, or with its inputs."""
    fault = f"{path} does not exist."
    if (path / "config.json").is_file():
        what = str(model.model_fields["kind"].default)
        record = read_record(path / "config.json", model, what, f"spg-pipe {command}")
        faults = differences(wanted, values_of(record))
        faults += backbone_differences(record.backbone, run.params)
        if not faults:
            return record
        fault = made_otherwise(path, faults)
    try:
        _first(inputs, command)
    except NotThereError:
        raise
    except SpgError as error:
        run.console.detail(f"not checked what comes before: {error}")
    raise refused(fault, command)


def _first(checked: Callable[[], _Checked], command: str) -> _Checked:
    """An input that a command needs; the command comes after those that make it."""
    try:
        return checked()
    except NotThereError as error:
        raise NotThereError(f"{error} Then `spg-pipe {command}`.", command=error.command) from None


def _where_here(run: RecipeRun, what: str, fingerprint: Callable[[], str]) -> Values:
    """The input at hand; nothing where it is not here or does not fit itself."""
    try:
        return {what: fingerprint()}
    except SpgError as error:
        run.console.detail(f"not checked against its {what}: {error}")
        return {}


def _aux_store(run: RecipeRun, aux: str) -> "FeatureStore":
    return checked_store(run, find_dataset(run.params, aux))


def _fitted(params: Params, seed: int) -> dict[str, object]:
    """What a recipe says about fitting, under the names that messages use."""
    from spg_pipe.guides.kinds import guides_of

    values: dict[str, object] = {
        "seed": seed,
        "method.protocol": params.method.protocol,
        "sae": params.sae,
        "guides": _without_order(guides_of(params.guides)),
        "method.detection": params.method.detection,
        "part of the auxiliary dataset": None,
    }
    return values if params.score.rule == "published" else values | {"decision": params.decision}


def _of_sae(record: "SaeRecord") -> Values:
    return {
        "seed": record.seed,
        "method.protocol": record.protocol.name,
        "sae": record.sae,
        "feature store": record.store,
    }


def _of_detector(record: "DetectorRecord") -> Values:
    weights = record.rule.weights if record.rule.rule == "additive" else None
    return _of_origin(record.origin) | {"decision": weights, "feature store": record.store}


def _of_origin(origin: "DetectorOrigin") -> dict[str, object]:
    return {
        "seed": origin.seed,
        "method.protocol": origin.protocol.name,
        "sae": origin.sae.params,
        "guides": _without_order(origin.guides),
        "method.detection": origin.detection,
        "part of the auxiliary dataset": origin.auxiliary.selection,
    }


def _of_scores(record: "ScoresRecord") -> Values:
    detector, rule, bank = record.detector, record.rule, record.bank
    return (_of_origin(detector) if detector else {}) | {
        "decision": rule.weights if rule and rule.rule == "additive" else None,
        "auxiliary": record.auxiliary,
        "part of the dataset": record.selection,
        "score": rule and rule.model_dump(mode="json", include={"rule", "image_score"}),
        "dataset": record.dataset,
        "split": record.split,
        "feature store": record.store,
        "normal images of the target": bank and bank.normals,
        "detector": detector and detector.fingerprint,
    }


def _without_order(guides: "Guides") -> dict[str, object]:
    """The order of the images is no setting of a recipe."""
    return guides.model_dump(mode="json", exclude={"order_seed"})
