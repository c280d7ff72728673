"""Methods × targets in one table: what each saw, how it did, how sure that is, what it cost."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spg_pipe.artefacts.files import read_json, write_json
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.find import find_dataset, find_store
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import GuideParams, parse_params
from spg_pipe.report.tables import Table
from spg_pipe.report.text import plain
from spg_pipe.study.choices import NORMALS
from spg_pipe.study.contestants import Contestant, contestants, judging_jobs, making_jobs
from spg_pipe.study.contests import Judged
from spg_pipe.study.costs import Cost
from spg_pipe.study.runner import run_jobs

if TYPE_CHECKING:
    from spg_pipe.store.reader import FeatureStore

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3")


class Comparison(NamedTuple):
    """What was found."""

    rows: list[dict[str, Any]]
    """A row a method and direction: mean and deviation over seeds, interval, time and memory."""
    table: str
    path: Path


def compare(run: RecipeRun, *, normals: int = NORMALS) -> Comparison:
    """Every method on every direction of the recipe, from finished stores.

    SAEs and guides that are missing are made. Few-shot methods take images of the target's train
    split, and are left out, with a note, where there is none. What is to be done is done in
    processes of its own, one for each core (`jobs.run_jobs`).

    Returns
    -------
    Comparison
        Its rows are also written to compare/<name>.csv.
    """
    from spg_pipe.metrics import write_csv

    _check(run)
    params, published, stores = run.params, _published(run), _stores(run)
    entries = list(contestants(run, published, stores, normals))
    jobs = [
        *making_jobs(run, published, stores),
        *judging_jobs(run, entries, stores),
    ]
    costs, judged = _Costs(run.paths.comparison_costs), dict[str, dict[str, Judged]]()
    named = {entry.name for entry in entries}
    for number, (name, result) in enumerate(run_jobs(jobs, choose_device(run.device)), 1):
        if name in named:
            judged[name] = result
        else:
            costs.add(result)
        run.console.say(f"{number} of {len(jobs)} done: {name}")
    rows = []
    for way in params.directions:
        here = [e for e in entries if e.aux in (None, way.aux) and way.target in e.targets]
        for method in dict.fromkeys(entry.method for entry in here):
            of_method = [entry for entry in here if entry.method == method]
            results = [_result(entry, judged, way.target) for entry in of_method]
            rows.append(_row(way.aux, of_method, results, costs))
    path = run.paths.comparison
    write_csv(path, rows)
    table = "\n\n".join(plain(_table(rows, way.aux, way.target)) for way in params.directions)
    run.console.say(f"Comparison {params.name} → {path}")
    return Comparison(rows, table, path)


def _stores(run: RecipeRun) -> "dict[str, FeatureStore]":
    """Of every auxiliary set and target, those with most images first: their jobs take longest."""
    names = dict.fromkeys(n for way in run.params.directions for n in (way.aux, way.target))
    found = {name: find_store(run, find_dataset(run.params, name)) for name in names}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _check(run: RecipeRun) -> None:
    params = run.params
    if not params.directions:
        raise SpgError("The recipe has no directions, so there is nothing to compare.")
    if params.guides.kind != "contrast" or params.score.rule != "additive":
        raise SpgError(
            "compare sets spg-plus, guides.kind: contrast with score.rule: additive, beside the "
            f"published method; found {params.guides.kind} and {params.score.rule}. Use a recipe "
            "with the default method, or `spg-pipe sweep` for other settings."
        )
    if params.metrics.resolution != "model":
        raise SpgError(
            f"compare judges maps at the model's size; found metrics.resolution: "
            f"{params.metrics.resolution}. Add --set metrics.resolution=model."
        )


def _published(run: RecipeRun) -> RecipeRun:
    """The recipe with the published method; its seeds share the order of images, and so a pass."""
    content = run.params.model_dump(mode="json")
    content["guides"] = GuideParams(kind="trained").model_dump(mode="json")
    content["score"] |= {"rule": "published", "image_score": "max"}
    params = parse_params(content, "compare")
    return replace(run, params=params, changed=run.changed | {"guides", "score"})


class _Costs:
    """What SAEs and guides cost when they were made, by fingerprint; kept for the next run.

    Parameters
    ----------
    path : Path
        JSON; what cannot be read is as if it were not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._known = read_json(path, "Costs")
        except SpgError:
            self._known = {}

    def add(self, found: dict[str, Cost]) -> None:
        """Remember what was just made."""
        for key, cost in found.items():
            self._known[key] = {"seconds": cost.seconds, "mebibytes": cost.mebibytes}
        write_json(self._path, self._known)

    def of(self, judged: Judged) -> Cost:
        """Making all that judged; NaN if a part of it was made elsewhere, unmeasured."""
        known = [self._known.get(key) for key in judged.artefacts]
        parts = [Cost(**one) if one else Cost() for one in known]
        return Cost.one_after_another([*parts, judged.making])


def _result(entry: Contestant, judged: dict[str, dict[str, Judged]], target: str) -> Judged:
    """With the cost of the scores that it went on from."""
    own = judged[entry.name][target]
    if entry.beside is None:
        return own
    before = judged[entry.beside][target]
    return own._replace(scoring=Cost.one_after_another([before.scoring, own.scoring]))


def _row(
    aux: str, entries: Sequence[Contestant], judged: Sequence[Judged], costs: _Costs
) -> dict[str, Any]:
    """Mean and deviation over seeds, the interval of the first; mean times, largest memory."""
    first = judged[0].metrics
    row: dict[str, Any] = {
        "auxiliary": aux,
        "dataset": first["dataset"],
        "split": first["split"],
        "method": entries[0].method,
        "sees": entries[0].sees,
        "backbone": first["backbone"],
        "method_protocol": first["method_protocol"],
        "protocol": first["protocol"],
        "resolution": first["resolution"],
        "seeds": ";".join(str(entry.seed) for entry in entries if entry.seed is not None),
    }
    for metric in METRICS:
        values = np.array([one.metrics.get(metric, np.nan) for one in judged], float)
        row[metric] = float(values.mean())
        row[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        if metric in judged[0].intervals:
            row[f"{metric}_low"], row[f"{metric}_high"] = judged[0].intervals[metric]
    for name, found in (
        ("making", [costs.of(one) for one in judged]),
        ("scoring", [one.scoring for one in judged]),
    ):
        row[f"{name}_seconds"] = float(np.mean([cost.seconds for cost in found]))
        row[f"{name}_mib"] = float(np.max([cost.mebibytes for cost in found]))
    return row


def _table(rows: Sequence[dict[str, Any]], aux: str, target: str) -> Table:
    chosen = [row for row in rows if (row["auxiliary"], row["dataset"]) == (aux, target)]
    lines = tuple(
        (
            row["method"],
            row["sees"],
            *(_figure(row, metric) for metric in METRICS),
            _cost(row, "making"),
            _cost(row, "scoring"),
        )
        for row in chosen
    )
    first = chosen[0]
    caption = (
        f"{aux} → {target} ({first['split']} split); {first['backbone']}; metrics protocol "
        f"{first['protocol']}, resolution {first['resolution']}; mean ± deviation over seeds "
        f"{first['seeds']}, and the 95 % bootstrap interval over images of the first. Making: all "
        "that is fitted for one seed, its SAE included (–: it was there already, made elsewhere); "
        "scoring: tokens to maps and image scores of the target. Each is the time of one process, "
        "and the peak of memory of its own beyond an idle process with its libraries."
    )
    heads = ("Method", "Sees", "Image AUROC", "Pixel AUROC", "Pixel AP", "AUPRO@0.3")
    return Table(caption, (*heads, "Making, s / MiB", "Scoring, s / MiB"), lines)


def _cost(row: dict[str, Any], name: str) -> str:
    seconds, mebibytes = row[f"{name}_seconds"], row[f"{name}_mib"]
    return "–" if math.isnan(seconds) else f"{seconds:.1f} / {mebibytes:.0f}"


def _figure(row: dict[str, Any], metric: str) -> str:
    value, deviation = row[metric], row[f"{metric}_std"]
    if np.isnan(value):
        return "–"
    text = f"{value:.3f}" + ("" if np.isnan(deviation) else f" ± {deviation:.3f}")
    if f"{metric}_low" in row:
        text += f" [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]"
    return text
