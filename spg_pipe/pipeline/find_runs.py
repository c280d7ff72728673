"""Finding SAEs, detectors and scores by what they were made with.

The pipeline's own path comes first, then what lies beside it. An artefact of other parameters is
never taken silently; several that fit are an error that lists them, none is an error that names
the command that makes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spg_pipe.artefacts.files import read_json
from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.guides.kinds import guides_of
from spg_pipe.pipeline.find import backbone_fits, find_dataset, find_store
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Dataset, Direction, Params
from spg_pipe.recipe.protocol import protocol

if TYPE_CHECKING:
    from spg_pipe.store.reader import FeatureStore


_NESTED = ("sae", "guides", "decision", "score")
"""Facts that are whole sections."""
_WORDS = {
    "store": "the feature store",
    "from": "the detector",
    "aux": "auxiliary",
    "aux_part": "the part of the auxiliary dataset",
    "part": "the part of the dataset",
    "normals": "normal images of the target",
    "detection": "method.detection",
    "protocol": "method.protocol",
}
"""What people call the facts that artefacts are compared by."""


def find_direction(params: Params, target: str, aux: str | None = None) -> Direction:
    """The recipe's direction with this target.

    Raises
    ------
    SpgError
        If the recipe has none, or several and `aux` does not say which.
    """
    fits = [d for d in params.directions if d.target == target and aux in (None, d.aux)]
    if len(fits) == 1:
        return fits[0]
    listed = ", ".join(f"{d.aux} → {d.target}" for d in params.directions) or "none"
    if fits:
        raise SpgError(f"Several directions have target {target!r} ({listed}); add --aux NAME.")
    raise SpgError(
        f"No direction of the recipe has target {target!r} (it has: {listed}). "
        "Name a detector with --detector, or add the direction to params.yaml."
    )


def find_sae(run: RecipeRun, features: "FeatureStore", aux: str, seed: int) -> Path:
    """The SAE that the recipe's `sae` section makes from a store.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    wanted = _training(run.params, seed, "sae", "protocol") | {"store": features.fingerprint}
    first = run.paths.sae(aux, seed)
    return _one_that_fits(run, first, wanted, _sae_facts, option="--sae", command="train-sae")


def find_detector(run: RecipeRun, aux: str, seed: int) -> Path:
    """The detector that the recipe's sections make from `aux`.

    Its training data need not be here; where the store is, the detector must be made from it.

    Raises
    ------
    SpgError
        If there is none, or several fit.
    """
    wanted = _training(run.params, seed) | {"aux_part": None}
    try:
        store = find_store(run, find_dataset(run.params, aux))
        wanted["store"] = store.fingerprint
    except SpgError as error:
        run.console.detail(f"not checked against the auxiliary store: {error}")
    first = run.paths.detector(aux, seed)
    one = partial(
        _one_that_fits,
        run,
        first,
        facts=_detector_facts,
        option="--detector",
        command="train-guides",
        before=lambda: find_sae(run, find_store(run, find_dataset(run.params, aux)), aux, seed),
    )
    if run.params.score.rule == "additive":
        return one(wanted)
    try:
        return one(wanted | {"decision": None})
    except NotThereError:
        # A decision is no hindrance: the published rule does not look at it.
        wanted.pop("decision")
        return one(wanted)


def find_scores(run: RecipeRun, dataset: Dataset, aux: str, seed: int) -> Path:
    """The scores of a target that the recipe's sections make.

    Where the target's store or the detector is, the scores must have been made from it.

    Raises
    ------
    SpgError
        If there are none, or several fit.
    """
    score = _score(run.params)
    wanted = _training(run.params, seed) | {
        "score": score,
        "aux": aux,
        "aux_part": None,
        "part": None,
        "normals": None,  # zero-shot
        "dataset": dataset.name,
        "split": dataset.split,
    }
    if run.params.score.rule == "published":
        wanted.pop("decision")
    made_from: dict[str, Callable[[], str]] = {
        "store": lambda: find_store(run, dataset).fingerprint,
        "from": lambda: _fingerprint_of(find_detector(run, aux, seed)),
    }
    for key, fingerprint in made_from.items():
        try:
            wanted[key] = fingerprint()
        except SpgError as error:
            run.console.detail(f"scores not checked against {_WORDS[key]}: {error}")
    first = run.paths.scores(aux, dataset.name, seed)
    return _one_that_fits(
        run,
        first,
        wanted,
        _score_facts,
        option="--scores",
        command="score",
        before=lambda: find_detector(run, aux, seed),
    )


@dataclass(frozen=True)
class FoundRun:
    """What one detector gave on one target."""

    scores: Path
    metrics: Path


def find_run(run: RecipeRun, direction: Direction, seed: int) -> FoundRun:
    """The scores that the recipe's sections make, and the metrics that its `metrics` makes of them.

    Raises
    ------
    SpgError
        If either is missing or was made otherwise.
    """
    dataset = find_dataset(run.params, direction.target)
    scores = find_scores(run, dataset, direction.aux, seed)
    first = run.paths.metrics(direction.aux, direction.target, seed)
    wanted = {
        "scores": _fingerprint_of(scores),
        "metrics": run.params.metrics.model_dump(mode="json"),
    }
    for path in (first, *sorted(first.parent.glob(f"{first.stem}-????????.json"))):
        if path.is_file():
            provenance = read_json(path, "Metrics").get("provenance")
            if isinstance(provenance, dict) and all(
                provenance.get(key) == value for key, value in wanted.items()
            ):
                return FoundRun(scores, path)
    raise SpgError(
        f"There are no metrics of {scores} with the recipe's `metrics` parameters beside {first}. "
        f"Run `spg-pipe evaluate --split {direction.target}` with the same options."
    )


def _fingerprint_of(artefact: Path) -> str:
    return str(read_json(artefact / "config.json", str(artefact))["fingerprint"])


def _training(params: Params, seed: int, *only: str) -> dict[str, Any]:
    """What a recipe says about training, under the names that `_…_facts` use."""
    facts = {
        "sae": params.sae.model_dump(mode="json"),
        "guides": _unordered(guides_of(params.guides).content()),
        "detection": params.method.detection,
        "protocol": protocol(params.method.protocol).to_dict(),
        "decision": _decision(params),
    }
    return {"seed": seed} | {key: facts[key] for key in only or facts}


def _decision(params: Params) -> dict[str, Any] | None:
    """What a decision is fitted with."""
    if params.score.rule != "additive":
        return None
    return params.decision.model_dump(mode="json")


def _sae_facts(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("seed", "sae", "protocol")} | {
        "store": config["inputs"]["store"]
    }


def _score(params: Params) -> dict[str, Any]:
    if params.score.rule == "additive":
        return {"rule": "additive"}
    return {"rule": "published", "image_score": params.score.image_score}


def _unordered(guides: dict[str, Any]) -> dict[str, Any]:
    """The order of the images is no setting of a recipe."""
    return {key: value for key, value in guides.items() if key != "order_seed"}


def _detector_facts(config: dict[str, Any]) -> dict[str, Any]:
    return _facts_of_detector(config) | {
        "decision": config["rule"].get("weights"),
        "store": config["store"],
    }


def _facts_of_detector(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("seed", "detection", "protocol")} | {
        "guides": _unordered(config["guides"]),
        "sae": config["sae"]["params"],
        "aux_part": config["auxiliary"]["selection"],
    }


def _score_facts(config: dict[str, Any]) -> dict[str, Any]:
    detector, rule = config["detector"], config["rule"]
    return _facts_of_detector(detector) | {
        "decision": rule.get("weights"),
        "aux": detector["auxiliary"]["dataset"],
        "part": config["selection"],
        "score": {key: rule[key] for key in ("rule", "image_score") if key in rule},
        "dataset": config["dataset"],
        "split": config["split"],
        "store": config["store"],
        "normals": (config["bank"] or {}).get("normals"),
        "from": detector["fingerprint"],
    }


def _one_that_fits(
    run: RecipeRun,
    first: Path,
    wanted: dict[str, Any],
    facts: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    option: str,
    command: str,
    before: Callable[[], object] = lambda: None,
) -> Path:
    """The artefact at `first`, or the only other beside it, that was made with what is wanted.

    `before` finds what `command` itself needs: where that is missing, other commands come first.
    """
    damage, differing = None, None
    try:
        differing = _differences(run, first, wanted, facts)
    except DamagedError as error:
        damage = error
    if differing == []:
        return first
    others = [path for path in sorted(first.parent.glob("*")) if path != first]
    found = [path for path in others if _fits(run, path, wanted, facts)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n  ".join(map(str, found))
        raise SpgError(f"Several fit; name one with {option}:\n  {listed}")
    needed = _first_command(command, before)
    advice = f"Run `spg-pipe {command}` with the same options first"
    if needed != command:
        advice = (
            f"Run `spg-pipe {needed}` first and then what follows up to `spg-pipe {command}`, all "
            "with the same options"
        )
    advice = f"{advice}, or name one with {option}."
    if damage is not None:
        raise DamagedError(f"{damage} {advice}") from damage
    hint = "does not exist"
    if differing:
        hint = f"was made with other settings or data ({', '.join(differing)} differ)"
    raise NotThereError(f"{first} {hint}. {advice}", command=needed)


def _first_command(command: str, before: Callable[[], object]) -> str:
    try:
        before()
    except NotThereError as error:
        return error.command
    except SpgError:
        return command  # which then says what is wrong
    return command


def _fits(
    run: RecipeRun,
    path: Path,
    wanted: dict[str, Any],
    facts: Callable[[dict[str, Any]], dict[str, Any]],
) -> bool:
    try:
        return _differences(run, path, wanted, facts) == []
    except DamagedError:
        return False  # an artefact of another kind, of an older format, or a broken one


def _differences(
    run: RecipeRun,
    path: Path,
    wanted: dict[str, Any],
    facts: Callable[[dict[str, Any]], dict[str, Any]],
) -> list[str] | None:
    """What an artefact was made otherwise with, by full names; None where there is none.

    Raises
    ------
    DamagedError
        If its config.json is not that of such an artefact.
    """
    if not (path / "config.json").is_file():
        return None
    config = read_json(path / "config.json", str(path))
    try:
        found = facts(config)
        names = [name for key in wanted for name in _named(key, wanted[key], found[key])]
        if not backbone_fits(config["backbone"], run.params):
            names.append("backbone")
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(
            f"{path} is damaged or of an older version: its config.json does not hold what it "
            f"should ({error})."
        ) from error
    return list(dict.fromkeys(names))


def _named(key: str, wanted: Any, found: Any) -> list[str]:
    """Full names of what differs: `sae.k`, not `sae`."""
    if wanted == found:
        return []
    if key in _NESTED and isinstance(found, dict) and isinstance(wanted, dict):
        return [f"{key}.{k}" for k in wanted | found if wanted.get(k) != found.get(k)]
    return [_WORDS.get(key, key)]
