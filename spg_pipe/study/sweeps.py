"""A recipe with every combination of some settings, or one changed at a time → one table.

Every step goes through the stage functions and the artefacts' usual places; what is there is
found and not made again. All SAEs of an auxiliary set and seed are trained in one pass.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.pipeline.features import extract
from spg_pipe.pipeline.find import find_dataset, find_store
from spg_pipe.pipeline.find_runs import find_detector, find_sae, find_scores
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.target import evaluate, read_metrics, score
from spg_pipe.pipeline.training import train_guides_together, train_saes
from spg_pipe.recipe.params import Params, parse_params
from spg_pipe.report.tables import LABELS, Table, digits
from spg_pipe.report.text import plain

if TYPE_CHECKING:
    from spg_pipe.metrics import MetricsTable

_SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3", "pixel_pro_fast")
_SECTIONS = ("backbone", "method", "sae", "guides", "decision", "score", "metrics")
"""What may vary; everything else says which data there is."""
AS_IT_IS = "the recipe as it is"


class Setting(NamedTuple):
    """One combination."""

    values: dict[str, Any]
    """`sae.k` → 16; empty: the recipe as it is."""
    run: RecipeRun

    @property
    def name(self) -> str:
        """As messages name it."""
        return named(self.values) if self.values else AS_IT_IS


class SweepResult(NamedTuple):
    """What a sweep found."""

    rows: list[dict[str, Any]]
    """A row a setting, direction: means over categories and seeds, the settings first."""
    table: str
    path: Path


def settings_of(run: RecipeRun, *, one_at_a_time: bool = False) -> list[Setting]:
    """The recipe once for every combination of its `sweep`.

    Parameters
    ----------
    one_at_a_time : bool
        The recipe as it is, then every value of `sweep` alone, all others as in the recipe.

    Raises
    ------
    SpgError
        If it has none, or a combination is not valid.
    """
    if not run.params.sweep:
        raise SpgError(
            "The recipe has no `sweep:` section, for instance `sweep: {sae.k: [16, 32]}`: there is "
            "nothing to compare. `spg-pipe recipe list` shows recipes that have one."
        )
    if not one_at_a_time:
        return combinations(run, run.params.sweep, "sweep", _SECTIONS)
    alone = [
        setting
        for place, values in run.params.sweep.items()
        for setting in combinations(run, {place: values}, "sweep", _SECTIONS)
        if setting.run.params != run.params
    ]
    return [Setting({}, run), *alone]


def combinations(
    run: RecipeRun, axes: Mapping[str, Sequence[Any]], what: str, sections: Sequence[str]
) -> list[Setting]:
    """The recipe once for every combination of some values.

    Parameters
    ----------
    axes : dict of place → values
    what : str
        The recipe's section that lists them, for messages.
    sections : sequence of str
        Where places may be.

    Raises
    ------
    SpgError
        If a place is none, or a combination is not valid.
    """
    doubled = [place for place in axes if place.partition(".")[0] in axes and "." in place]
    if doubled:
        section = doubled[0].partition(".")[0]
        raise SpgError(f"{what}: {section} and {doubled[0]} both set it; give one of them.")
    for place in axes:
        if place.partition(".")[0] not in sections:
            expected = f"expected one of {', '.join(sections)}, and a parameter"
            raise SpgError(f"{what}: {place}: {expected}.")
    found = []
    each = [list({repr(value): value for value in values}.values()) for values in axes.values()]
    for chosen in itertools.product(*each):
        values = dict(zip(axes, chosen, strict=True))
        content = run.params.model_dump(mode="json")
        for place, value in values.items():
            _set(content, place, value, what)
        params = parse_params(content, f"{what} {named(values)}")
        changed = {name for name in _SECTIONS if getattr(params, name) != getattr(run.params, name)}
        one = replace(run, params=params, changed=run.changed | changed)
        found.append(Setting(values, one))
    return found


def _set(content: dict[str, Any], place: str, value: Any, what: str) -> None:
    *sections, key = place.split(".")
    if not sections and not isinstance(value, dict):
        raise SpgError(f"{what}: {place}: a whole section needs values such as {{alias: NAME}}.")
    target = content
    for name in sections:
        if not isinstance(target.get(name), dict):
            raise SpgError(f"{what}: {place}: {name} is no section.")
        target = target[name]
    target[key] = value


def sweep(run: RecipeRun, *, one_at_a_time: bool = False) -> SweepResult:
    """Run every setting of the recipe's `sweep`, in all directions, with all seeds.

    Parameters
    ----------
    one_at_a_time : bool
        Instead of every combination: see `settings_of`. Rows then have a `setting` in words.

    Returns
    -------
    SweepResult
        Also written to sweeps/<name>.csv.

    Raises
    ------
    SpgError
        As the stages do.
    """
    from spg_pipe.metrics import flat_rows, seeds_mean, write_csv

    settings = settings_of(run, one_at_a_time=one_at_a_time)
    params = run.params
    for setting in _distinct(settings, ("backbone", "method")):
        for name in dict.fromkeys(n for d in params.directions for n in (d.aux, d.target)):
            _need_store(setting.run, name)
    for group in _groups(settings, ("backbone", "method")):
        saes = _distinct(group, ("sae",))
        for aux, seed in itertools.product(
            dict.fromkeys(d.aux for d in params.directions), params.seeds
        ):
            _train(group, saes, aux, seed)
    rows = []
    for number, setting in enumerate(settings):
        run.console.say(f"Setting {number + 1} of {len(settings)}: {setting.name}")
        shown = {"setting": setting.name} if one_at_a_time else setting.values
        for way in params.directions:
            seeds = [_metrics(setting.run, way.aux, way.target, s) for s in params.seeds]
            rows.append(shown | flat_rows(seeds_mean(seeds))[-1])
    path = run.paths.sweep
    write_csv(path, rows)
    text = plain(_table(params, rows, ["setting"] if one_at_a_time else list(params.sweep)))
    run.console.say(f"Sweep {params.name} → {path}")
    return SweepResult(rows, text, path)


def _need_store(run: RecipeRun, name: str) -> None:
    dataset = find_dataset(run.params, name)
    if not is_there(partial(find_store, run, dataset)):
        extract(run, dataset)


def _train(group: Sequence[Setting], saes: Sequence[Setting], aux: str, seed: int) -> None:
    store = find_store(group[0].run, find_dataset(group[0].run.params, aux))
    missing = [
        one.run for one in saes if not is_there(partial(find_sae, one.run, store, aux, seed))
    ]
    if missing:
        train_saes(missing, aux, [seed])
    untrained = [
        one.run
        for one in _distinct_detectors(group)
        if not is_there(partial(find_detector, one.run, aux, seed))
    ]
    if untrained:
        train_guides_together(untrained, aux, [seed])


def _distinct_detectors(group: Sequence[Setting]) -> list[Setting]:
    """One for each detector that `find_detector` tells apart: most of `score` is no part of it."""
    found: dict[str, Setting] = {}
    for setting in group:
        params = setting.run.params
        key: list[object] = [params.sae, params.guides]
        if params.score.rule == "additive":
            key += [params.decision]
        found.setdefault(repr(key), setting)
    return list(found.values())


def _metrics(run: RecipeRun, aux: str, target: str, seed: int) -> "MetricsTable":
    from spg_pipe.detector.scores import Scores

    dataset = find_dataset(run.params, target)
    if not is_there(lambda: Scores.load(find_scores(run, dataset, aux, seed))):
        score(run, target, aux=aux, seed=seed)
    return read_metrics(evaluate(run, target, aux=aux, seed=seed)[0])


def is_there(find: Callable[[], object]) -> bool:
    """Whether it is found, and whole as far as finding it looks."""
    try:
        find()
    except (NotThereError, DamagedError):
        return False
    return True


def _distinct(settings: Sequence[Setting], sections: Sequence[str]) -> list[Setting]:
    return [group[0] for group in _groups(settings, sections)]


def _groups(settings: Sequence[Setting], sections: Sequence[str]) -> Iterator[list[Setting]]:
    """Settings that agree in some sections, in order of first appearance."""
    by_key: dict[str, list[Setting]] = {}
    for setting in settings:
        key = repr([getattr(setting.run.params, name) for name in sections])
        by_key.setdefault(key, []).append(setting)
    yield from by_key.values()


def named(values: Mapping[str, Any]) -> str:
    """A combination, as messages name it."""
    return ", ".join(f"{place} = {_short(value)}" for place, value in values.items())


def _short(value: Any) -> str:
    """As in YAML; a backbone's section by its alias."""
    if value is None:
        return "null"
    return str(value.get("alias", value)) if isinstance(value, dict) else str(value)


def _all(rows: Sequence[dict[str, Any]], key: str) -> str:
    return " and ".join(dict.fromkeys(str(row[key]) for row in rows))


def _figure(row: dict[str, Any], name: str) -> str:
    return digits(row.get(name, math.nan), row.get(f"{name}_std", math.nan))


def _table(params: Params, rows: Sequence[dict[str, Any]], axes: Sequence[str]) -> Table:
    shown = [name for name in _SHOWN if any(name in row for row in rows)]
    lines = []
    for row in rows:
        settings = ", ".join(_short(row[axis]) for axis in axes)
        way = f"{row['auxiliary']} → {row['dataset']}"
        lines.append((settings, way, *(_figure(row, name) for name in shown)))
    caption = (
        f"Sweep {params.name}: means over categories; {_all(rows, 'method')}, method protocol "
        f"{_all(rows, 'method_protocol')}, metrics protocol {_all(rows, 'protocol')}, seeds "
        f"{', '.join(map(str, params.seeds))}."
    )
    columns = (", ".join(axes), "Auxiliary → target", *(LABELS[name] for name in shown))
    return Table(caption, columns, tuple(lines))
