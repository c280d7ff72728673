"""`spg-pipe compare`: methods × targets in one table: what each saw, how it did, what it cost."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spg_pipe.artefacts.files import require_writable, write_text
from spg_pipe.artefacts.record import write_record
from spg_pipe.datasets.manifest import MaskState
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.record import DetectorOrigin
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.metrics import Cell, MetricsTable, csv_text
from spg_pipe.metrics.bootstrap import CategoryImages, Interval, intervals, pixel_histograms
from spg_pipe.pipeline.costs import Cost, idle_memory, measured
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Direction, MetricParams
from spg_pipe.report.tables import LABELS, Table, figure, plain
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.costs import MakingCosts
from spg_pipe.study.making import guides_job, making_jobs
from spg_pipe.study.methods import MUTUAL, Entry, Stores, entries, stores_of
from spg_pipe.study.runner import Job, run_jobs
from spg_pipe.study.settings import Result, require_default_method

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3")


class Judged(NamedTuple):
    """What one entry gave on one target."""

    table: MetricsTable
    intervals: dict[str, Interval]
    making: Cost
    """In the judging process; what `detector` cost comes to it."""
    scoring: Cost
    detector: DetectorOrigin | None


def compare(run: RecipeRun, *, normals: int = 4) -> Result:
    """Every method on every direction of the recipe, from finished stores.

    SAEs and guides that are missing are made. Few-shot methods take images of the target's train
    split, and are left out, with a note, where there is none. What is to be done is done in
    processes of its own, one for each core (`runner`).

    The result is a row for each method and direction: mean and deviation over seeds, interval,
    costs. It is also written to compare/<name>.csv.
    """
    if not run.params.directions:
        raise SpgError("The recipe has no directions, so there is nothing to compare.")
    require_default_method(run.params, "compare")
    if normals == 1 and run.params.bank.neighbours > 1:
        raise SpgError(
            f"--normals 1 takes bank.neighbours: 1; found {run.params.bank.neighbours}. Give more "
            "normal images, or add --set bank.neighbours=1."
        )
    if run.params.metrics.resolution != "model":
        raise SpgError(
            f"compare judges maps at the model's size; found metrics.resolution: "
            f"{run.params.metrics.resolution}. Add --set metrics.resolution=model."
        )
    require_writable(path := run.paths.comparison)
    run = replace(run, console=replace(run.console, bars=False))  # bars of jobs would overlap
    ways = run.params.directions
    stores = stores_of(run)
    compared = {entry.name: entry for entry in entries(run, stores, normals)}
    slowest_first = sorted(compared.values(), key=lambda entry: entry.method != MUTUAL)
    judging = [_judging_job(run, entry, stores) for entry in slowest_first]
    jobs = [*making_jobs(run, stores), *judging]
    trained = path.with_name(f"{path.stem}-costs.json")
    costs = MakingCosts.load(trained)
    judged: dict[str, dict[str, Judged]] = {}
    for number, (name, result) in enumerate(run_jobs(jobs, choose_device(run.device)), 1):
        if name in compared:
            judged[name] = result
        else:
            costs = MakingCosts(costs=costs.costs | result)
            write_record(trained, costs)
        run.console.say(f"{number} of {len(jobs)} done: {name}")
    by_way = [_rows(way, compared.values(), judged, costs) for way in ways]
    rows = [row for of_way in by_way for row in of_way]
    write_text(path, csv_text(rows))
    run.console.say(f"Comparison {run.params.name} → {path}")
    return Result(rows, "\n\n".join(plain(_table(of_way)) for of_way in by_way), path)


def _judging_job(run: RecipeRun, entry: Entry, stores: Stores) -> Job:
    outs = [run.paths.compared(entry.method, entry.aux, t, entry.seed) for t in entry.targets]
    paths = {t: (Path(stores[t].path), out) for t, out in zip(entry.targets, outs, strict=True)}
    bootstrap = entry.seed in (None, run.params.seeds[0])
    work = partial(judge, entry, paths, run.params.metrics, bootstrap=bootstrap)
    after = (guides_job(entry.guides, str(entry.aux)),) if entry.guides else ()
    return Job(entry.name, work, after)


def judge(
    entry: Entry,
    paths: Mapping[str, tuple[Path, Path]],
    metrics: MetricParams,
    *,
    bootstrap: bool,
) -> dict[str, Judged]:
    """Make a method once, and judge every target by it: in a process of its own.

    `paths` are a target's feature store and where its scores go; with `bootstrap` intervals over
    images are drawn, too.
    """
    start, scored = idle_memory(), {}
    with measured(start) as making:
        score = entry.make(entry)
    for target, (path, out) in paths.items():
        store = FeatureStore(path)
        with measured(start) as scoring:
            scores = score(store, out)
        scored[target] = scores, store, scoring
    judged = {}
    for target, (scores, store, scoring) in scored.items():
        table = evaluate_scores(scores, store, metrics).table
        drawn = score_intervals(scores, store) if bootstrap else {}
        judged[target] = Judged(table, drawn, making, scoring, scores.record.detector)
    return judged


def score_intervals(scores: Scores, store: FeatureStore) -> dict[str, Interval]:
    """Bootstrap over the target's images: metric → interval."""
    table, categories = scores.table, []
    for category in dict.fromkeys(table["category"]):
        chosen = np.flatnonzero(table["category"] == category)
        states = table["mask_state"].to_numpy()[chosen]

        def pairs(rows: np.ndarray = chosen) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(rows), 64):
                part = rows[start : start + 64]
                yield from zip(scores.maps(part), store.masks(part) > 0, strict=True)

        normal, anomalous = pixel_histograms(pairs(), *scores.bounds(chosen))
        known = (states != MaskState.MISSING)[:, None]
        labels, values = (table[name].to_numpy()[chosen] for name in ("label", "score"))
        categories.append(CategoryImages(labels, values, normal * known, anomalous * known))
    return intervals(categories)


def _rows(
    way: Direction,
    compared: Iterable[Entry],
    judged: Mapping[str, Mapping[str, Judged]],
    costs: MakingCosts,
) -> list[Mapping[str, Any]]:
    """Of one direction, a row for each method."""
    methods: dict[str, list[Entry]] = {}
    for entry in compared:
        if entry.aux in (None, way.aux) and way.target in entry.targets:
            methods.setdefault(entry.method, []).append(entry)
    return [_row(way, entries_of, judged, costs) for entries_of in methods.values()]


def _row(
    way: Direction,
    seeds: Sequence[Entry],
    judged: Mapping[str, Mapping[str, Judged]],
    costs: MakingCosts,
) -> Mapping[str, Any]:
    """Of one method: means over seeds, the interval of the first, and the largest memory."""
    results = [judged[entry.name][way.target] for entry in seeds]
    making = [costs.of(each.detector, each.making) for each in results]
    context = results[0].table.context
    row: dict[str, Cell] = {
        "auxiliary": way.aux,
        "dataset": context.dataset,
        "split": context.split,
        "method": seeds[0].method,
        "supervision": seeds[0].supervision,
        "backbone": context.backbone,
        "method_protocol": context.method_protocol,
        "protocol": context.protocol,
        "resolution": context.resolution,
        "seeds": ";".join(str(entry.seed) for entry in seeds if entry.seed is not None),
    }
    for metric in METRICS:
        values = np.array([each.table.mean.metrics.get(metric, math.nan) for each in results])
        row[metric] = float(values.mean())
        row[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        if interval := results[0].intervals.get(metric):
            row[f"{metric}_low"], row[f"{metric}_high"] = interval
    for work, spent in (("making", making), ("scoring", [each.scoring for each in results])):
        row[f"{work}_seconds"] = float(np.mean([cost.seconds for cost in spent]))
        row[f"{work}_mib"] = float(np.max([cost.mebibytes for cost in spent]))
    return row


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Of one direction."""
    row = rows[0]
    caption = (
        f"{row['auxiliary']} → {row['dataset']} ({row['split']} split); {row['backbone']}; metrics "
        f"protocol {row['protocol']}, resolution {row['resolution']}; mean ± deviation over seeds "
        f"{row['seeds']}, and the 95 % bootstrap interval over images of the first. Making: all "
        "that is fitted for one seed, its SAE included (–: it was there already, made elsewhere); "
        "scoring: tokens to maps and image scores of the target. Each is the time of one process, "
        "and the peak of memory of its own beyond an idle process with its libraries."
    )
    columns = ("Method", "Supervision", *(LABELS[metric] for metric in METRICS))
    cells = []
    for row in rows:
        spent = [(row[f"{work}_seconds"], row[f"{work}_mib"]) for work in ("making", "scoring")]
        costs = ["–" if math.isnan(s) else f"{s:.1f} / {mib:.0f}" for s, mib in spent]
        figures = [figure(row, metric) for metric in METRICS]
        cells.append((row["method"], row["supervision"], *figures, *costs))
    return Table(caption, (*columns, "Making, s / MiB", "Scoring, s / MiB"), tuple(cells))
