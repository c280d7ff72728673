"""`spg-pipe sweep`: every combination of some settings, or one changed at a time → one table.

Every step goes through the stage functions and the artefacts' usual paths; what is there and fits
is not made again.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from spg_pipe.artefacts.files import require_writable, write_text
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.metrics import MetricsTable, csv_text, flat_rows, seeds_mean
from spg_pipe.pipeline.checked import checked_detector, checked_scores, is_there
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.features import stored
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.targets import evaluate, read_metrics, score
from spg_pipe.pipeline.training import train_guides_together
from spg_pipe.recipe.params import Params
from spg_pipe.recipe.places import Place
from spg_pipe.report.tables import LABELS, Table, figure, plain
from spg_pipe.study.settings import (
    Result,
    Setting,
    combinations,
    short,
    train_missing_saes,
)

_SHOWN = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3", "pixel_pro_fast")
_SECTIONS = ("backbone", "method", "sae", "guides", "decision", "score", "metrics")
"""What may vary; everything else says which data there is."""


def sweep(run: RecipeRun, *, one_at_a_time: bool = False) -> Result:
    """Run every setting of the recipe's `sweep`, in all directions, with all seeds.

    `one_at_a_time` see `settings_of`; rows then have a `setting` in words. The result is also
    written to sweeps/<name>.csv.
    """
    settings, params = settings_of(run, one_at_a_time=one_at_a_time), run.params
    require_writable(run.paths.sweep)
    for aux in dict.fromkeys(way.aux for way in params.directions):
        _train(settings, aux)
    rows: list[Mapping[str, Any]] = []
    for number, setting in enumerate(settings, 1):
        run.console.say(f"Setting {number} of {len(settings)}: {setting.name}")
        values = {"setting": setting.name} if one_at_a_time else setting.values
        for way in params.directions:
            _need_store(setting, way.target)
            seeds = [_metrics(setting.run, way.aux, way.target, seed) for seed in params.seeds]
            rows.append({**values, **flat_rows(seeds_mean(seeds))[-1]})
    write_text(run.paths.sweep, csv_text(rows))
    run.console.say(f"Sweep {params.name} → {run.paths.sweep}")
    return Result(rows, plain(_table(params, list(values), rows)), run.paths.sweep)


def settings_of(run: RecipeRun, *, one_at_a_time: bool = False) -> list[Setting]:
    """The recipe once for every combination of its `sweep`.

    With `one_at_a_time` the recipe as it is, then every value of `sweep` alone, all others as in
    the recipe. An `SpgError` if it has none, or a combination is not valid.
    """
    axes = run.params.sweep
    if not axes:
        raise SpgError(
            "The recipe has no `sweep:` section, for instance `sweep: {sae.k: [16, 32]}`: there is "
            "nothing to compare. `spg-pipe recipe list` shows recipes that have one."
        )
    if not one_at_a_time:
        return combinations(run, axes, "sweep", _SECTIONS)
    each = (combinations(run, {key: axes[key]}, "sweep", _SECTIONS) for key in axes)
    changed = [one for settings in each for one in settings if one.run.params != run.params]
    return [Setting({}, run), *changed]


def _train(settings: Sequence[Setting], aux: str) -> None:
    """Stores, SAEs and detectors of an auxiliary set; guides of one store share a pass over it."""
    by_store: dict[Place, list[Setting]] = {}
    for setting in settings:
        by_store.setdefault(setting.run.paths.store(aux), []).append(setting)
    for group in by_store.values():
        _need_store(group[0], aux)
        for seed in group[0].run.params.seeds:
            train_missing_saes(group, aux, seed)
            runs = {one.run.paths.detector(aux, seed): one.run for one in group}.values()
            missing = [
                run for run in runs if not is_there(partial(checked_detector, run, aux, seed))
            ]
            if missing:
                train_guides_together(missing, aux, [seed])


def _need_store(setting: Setting, name: str) -> None:
    try:
        stored(setting.run, find_dataset(setting.run.params, name))
    except NotThereError as error:  # its options are not those of the sweep alone
        raise SpgError(f"{setting.name}: {error}") from error


def _metrics(run: RecipeRun, aux: str, target: str, seed: int) -> MetricsTable:
    dataset = find_dataset(run.params, target)
    scores = run.paths.scores(aux, dataset, seed)
    if not is_there(lambda: (checked_scores(run, dataset, aux, seed), Scores.load(scores))):
        score(run.narrowed(aux, seed), target)
    return read_metrics(evaluate(run.narrowed(aux, seed), target)[0])


def _table(params: Params, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [name for name in _SHOWN if any(name in row for row in rows)]
    method, method_protocol, protocol = (
        " and ".join(dict.fromkeys(row[name] for row in rows))
        for name in ("method", "method_protocol", "protocol")
    )
    caption = (
        f"Sweep {params.name}: means over categories; {method}, method protocol "
        f"{method_protocol}, metrics protocol {protocol}, seeds "
        f"{', '.join(map(str, params.seeds))}."
    )
    cells = tuple(
        (
            ", ".join(short(row[name]) for name in names),
            f"{row['auxiliary']} → {row['dataset']}",
            *(figure(row, name) for name in shown),
        )
        for row in rows
    )
    columns = (", ".join(names), "Auxiliary → target", *(LABELS[name] for name in shown))
    return Table(caption, columns, cells)
