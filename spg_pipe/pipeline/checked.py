"""The artefacts of a recipe, checked: each is at its path (`run.paths`) and fits, or an error.

There is no search. What does not fit is named with both values and the command that mends it. Where
an input of a missing artefact is itself missing or does not fit, that is told instead: it comes
first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spg_pipe.artefacts.files import read_json
from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.guides.kinds import guides_of
from spg_pipe.pipeline.checked_store import (
    Values,
    advice,
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
    from spg_pipe.store.reader import FeatureStore


_Checked = TypeVar("_Checked")


def checked_sae(run: RecipeRun, store: "FeatureStore", aux: str, seed: int) -> Path:
    """The SAE of the recipe's `sae` section, trained on this store.

    Raises
    ------
    NotThereError, DamagedError
        If there is none that fits.
    """
    given = {} if store.path == run.paths.store(aux) else {"store": store.fingerprint}
    path = run.paths.sae(aux, seed, given)
    wanted = _fitted(run.params, seed, "sae") | {"feature store": store.fingerprint}
    _require(run, path, wanted, _of_sae, f"train-sae --aux {aux} --seed {seed}")
    return path


def checked_detector(run: RecipeRun, aux: str, seed: int) -> Path:
    """The detector of the recipe's sections, made from `aux`.

    Its training data need not be here; where the store is, the detector must be made from it.

    Raises
    ------
    NotThereError, DamagedError
        If there is none that fits.
    """
    path = run.paths.detector(aux, seed)
    wanted = _fitted(run.params, seed) | {"part of the auxiliary dataset": None}
    wanted |= _where_here(run, "feature store", lambda: _aux_store(run, aux).fingerprint)
    if run.params.score.rule == "published":
        wanted.pop("decision")
    _require(
        run,
        path,
        wanted,
        _of_detector,
        f"train-guides --aux {aux} --seed {seed}",
        lambda: _sae_of(run, aux, seed),
    )
    return path


def _sae_of(run: RecipeRun, aux: str, seed: int) -> Path:
    store = _first(lambda: _aux_store(run, aux), f"train-sae --aux {aux} --seed {seed}")
    return checked_sae(run, store, aux, seed)


def checked_scores(run: RecipeRun, dataset: Dataset, aux: str, seed: int) -> Path:
    """The zero-shot scores of a target by the recipe's sections.

    Where the target's store or the detector is, the scores must have been made from it.

    Raises
    ------
    NotThereError, DamagedError
        If there are none that fit.
    """
    params, path = run.params, run.paths.scores(aux, dataset, seed)
    wanted = _fitted(params, seed) | {
        "score": _score(params),
        "auxiliary": aux,
        "part of the auxiliary dataset": None,
        "part of the dataset": None,
        "normal images of the target": None,
        "dataset": dataset.name,
        "split": dataset.split,
    }
    if params.score.rule == "published":
        wanted.pop("decision")
    wanted |= _where_here(run, "feature store", lambda: checked_store(run, dataset).fingerprint)
    wanted |= _where_here(
        run, "detector", lambda: _fingerprint_of(checked_detector(run, aux, seed))
    )
    _require(
        run,
        path,
        wanted,
        _of_scores,
        f"score --split {split_name(params, dataset)} --aux {aux} --seed {seed}",
        lambda: checked_detector(run, aux, seed),
    )
    return path


def checked_metrics(run: RecipeRun, direction: Direction, seed: int) -> tuple[Path, Path]:
    """The metrics of a direction by the recipe's `metrics` section, and the scores behind them.

    Raises
    ------
    NotThereError, DamagedError
        If there are none that fit.
    """
    from spg_pipe.detector.metrics_file import read_metrics

    dataset = find_dataset(run.params, direction.target)
    scores = checked_scores(run, dataset, direction.aux, seed)
    path = run.paths.metrics(direction.aux, dataset, seed)
    command = f"evaluate --split {direction.target} --aux {direction.aux} --seed {seed}"
    if not path.is_file():
        raise refused(f"There are no metrics of {scores}: {path} does not exist.", command)
    provenance = read_metrics(path).provenance.model_dump(mode="json")
    wanted = {
        "scores": _fingerprint_of(scores),
        "metrics": run.params.metrics.model_dump(mode="json"),
    }
    faults = differences(wanted, provenance)
    if faults:
        raise refused(made_otherwise(path, faults), command)
    return path, scores


def _require(
    run: RecipeRun,
    path: Path,
    wanted: Values,
    values_of: Callable[[Any], Values],
    command: str,
    inputs: Callable[[], object] = lambda: None,
) -> None:
    """Raise what is wrong with an artefact, or with its inputs, which come first."""
    fault = f"{path} does not exist."
    try:
        if (path / "config.json").is_file():
            config = read_json(path / "config.json", str(path))
            faults = _faults(run, path, config, wanted, values_of)
            if not faults:
                return
            fault = made_otherwise(path, faults)
    except DamagedError as error:
        raise DamagedError(f"{error} {advice(command)}") from error
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


def _faults(
    run: RecipeRun, path: Path, config: Any, wanted: Values, values_of: Callable[[Any], Values]
) -> list[str]:
    from spg_pipe.backbones.spec import BackboneSpec

    try:
        spec = BackboneSpec.model_validate(config["backbone"])
        return differences(wanted, values_of(config)) + backbone_differences(spec, run.params)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path} is damaged or of an older version: its config.json does not hold what it "
            f"should ({error})."
        ) from error


def _where_here(run: RecipeRun, what: str, fingerprint: Callable[[], str]) -> Values:
    """The input at hand; nothing where it is not here or does not fit itself."""
    try:
        return {what: fingerprint()}
    except SpgError as error:
        run.console.detail(f"not checked against its {what}: {error}")
        return {}


def _aux_store(run: RecipeRun, aux: str) -> "FeatureStore":
    return checked_store(run, find_dataset(run.params, aux))


def _fingerprint_of(artefact: Path) -> str:
    return str(read_json(artefact / "config.json", str(artefact))["fingerprint"])


def _fitted(params: Params, seed: int, *only: str) -> dict[str, Any]:
    """What a recipe says about fitting, under the names that messages use."""
    values = {
        "sae": params.sae.model_dump(mode="json"),
        "guides": _without_order(guides_of(params.guides).content()),
        "method.detection": params.method.detection,
        "decision": params.decision.model_dump(mode="json"),
    }
    chosen = {name: values[name] for name in only or values}
    return {"seed": seed, "method.protocol": params.method.protocol} | chosen


def _of_sae(config: Any) -> Values:
    return {
        "seed": config["seed"],
        "method.protocol": config["protocol"]["name"],
        "sae": config["sae"],
        "feature store": config["store"],
    }


def _of_fitted(config: Any) -> dict[str, Any]:
    return {
        "seed": config["seed"],
        "method.protocol": config["protocol"]["name"],
        "sae": config["sae"]["params"],
        "guides": _without_order(config["guides"]),
        "method.detection": config["detection"],
        "part of the auxiliary dataset": config["auxiliary"]["selection"],
    }


def _score(params: Params) -> dict[str, Any]:
    if params.score.rule == "additive":
        return {"rule": "additive"}
    return params.score.model_dump(mode="json")


def _without_order(guides: dict[str, Any]) -> dict[str, Any]:
    """The order of the images is no setting of a recipe."""
    return {key: value for key, value in guides.items() if key != "order_seed"}


def _of_detector(config: Any) -> Values:
    return _of_fitted(config) | {
        "decision": config["rule"].get("weights"),
        "feature store": config["store"],
    }


def _of_scores(config: Any) -> Values:
    rule = config["rule"]
    return _of_fitted(config["detector"]) | {
        "decision": rule.get("weights"),
        "auxiliary": config["auxiliary"],
        "part of the dataset": config["selection"],
        "score": {key: rule[key] for key in ("rule", "image_score") if key in rule},
        "dataset": config["dataset"],
        "split": config["split"],
        "feature store": config["store"],
        "normal images of the target": config["bank"] and config["bank"]["normals"],
        "detector": config["detector"]["fingerprint"],
    }
