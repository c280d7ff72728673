"""`spg-pipe compare`: methods × targets in one table: what each saw, how it did, what it cost."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spg_pipe.datasets.manifest import MaskState
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.metrics import Cell, MetricsTable, write_csv
from spg_pipe.metrics.bootstrap import CategoryImages, Interval, intervals, pixel_histograms
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import MetricParams
from spg_pipe.report.tables import LABELS, Table, digits, plain
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.costs import Cost, MakingCosts, idle_memory, measured, one_after_another
from spg_pipe.study.making import guides_job, making_jobs
from spg_pipe.study.methods import MUTUAL, Entry, Ready, Stores, entries
from spg_pipe.study.runner import Job, run_jobs

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro_0.3")


class Comparison(NamedTuple):
    """What was found."""

    rows: list[dict[str, Cell]]
    """A row for each method and direction: mean and deviation over seeds, interval, costs."""
    table: str
    path: Path


class Judged(NamedTuple):
    """What one entry gave on one target."""

    table: MetricsTable
    intervals: dict[str, Interval]
    making: Cost
    """In the judging process; what `artefacts` cost comes to it."""
    scoring: Cost
    artefacts: tuple[str, ...]


def compare(run: RecipeRun, *, normals: int = 4) -> Comparison:
    """Every method on every direction of the recipe, from finished stores.

    SAEs and guides that are missing are made. Few-shot methods take images of the target's train
    split, and are left out, with a note, where there is none. What is to be done is done in
    processes of its own, one for each core (`runner`).

    Returns
    -------
    Comparison
        Its rows are also written to compare/<name>.csv.
    """
    _check(run)
    run = replace(run, console=replace(run.console, bars=False))  # bars of jobs would overlap
    ways, stores = run.params.directions, _stores(run)
    compared = {entry.name: entry for entry in entries(run, stores, normals)}
    jobs = [*making_jobs(run, stores), *_judging_jobs(run, list(compared.values()), stores)]
    costs = MakingCosts.load(run.paths.comparison_costs)
    judged: dict[str, dict[str, Judged]] = {}
    for number, (name, result) in enumerate(run_jobs(jobs, choose_device(run.device)), 1):
        if name in compared:
            judged[name] = result
        else:
            costs = costs.add(result, run.paths.comparison_costs)
        run.console.say(f"{number} of {len(jobs)} done: {name}")
    by_way = [_lines(way.aux, way.target, compared.values(), judged, costs) for way in ways]
    rows, path = [line.row for lines in by_way for line in lines], run.paths.comparison
    write_csv(path, rows)
    run.console.say(f"Comparison {run.params.name} → {path}")
    return Comparison(rows, "\n\n".join(plain(_table(lines)) for lines in by_way), path)


def _stores(run: RecipeRun) -> Stores:
    """Of every auxiliary set and target, those with most images first: their jobs take longest."""
    names = dict.fromkeys(n for way in run.params.directions for n in (way.aux, way.target))
    stores = {name: checked_store(run, find_dataset(run.params, name)) for name in names}
    return dict(sorted(stores.items(), key=lambda item: -len(item[1])))


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


def _judging_jobs(run: RecipeRun, compared: Sequence[Entry], stores: Stores) -> Iterator[Job]:
    """A job for each entry; mutual scoring, the slowest, first."""
    first: dict[tuple[str, str | None], int | None] = {}
    for entry in compared:
        first.setdefault((entry.method, entry.aux), entry.seed)
    for entry in sorted(compared, key=lambda entry: entry.method != MUTUAL):
        targets = {}
        for target in entry.targets:
            scores = run.paths.compared(entry.method, entry.aux, target, entry.seed)
            targets[target] = Path(stores[target].path), scores
        bootstrap = first[entry.method, entry.aux] == entry.seed
        work = partial(judge, entry.make, targets, run.params.metrics, bootstrap=bootstrap)
        after = [guides_job(entry.guides, str(entry.aux))] if entry.guides else []
        yield Job(entry.name, work, (*after, *([entry.beside] if entry.beside else [])))


def judge(
    make: Callable[[], Ready],
    targets: Mapping[str, tuple[Path, Path]],
    metrics: MetricParams,
    *,
    bootstrap: bool,
) -> dict[str, Judged]:
    """Make a method once, and judge every target by it: in a process of its own.

    `targets` are a target's feature store and where its scores go; with `bootstrap` intervals over
    images are drawn, too.
    """
    start, scored = idle_memory(), {}
    with measured(start) as making:
        made = make()
    for target, (path, place) in targets.items():
        store = FeatureStore(path)
        with measured(start) as scoring:
            scores = made.score(store, place)
        scored[target] = scores, store, scoring
    judged = {}
    for target, (scores, store, scoring) in scored.items():
        table = evaluate_scores(scores, store, metrics).table
        drawn = score_intervals(scores, store) if bootstrap else {}
        judged[target] = Judged(table, drawn, making, scoring, made.artefacts)
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


class _Line(NamedTuple):
    """A method on a direction: of the CSV, and of the terminal's table."""

    row: dict[str, Cell]
    cells: tuple[str, ...]


def _lines(
    aux: str,
    target: str,
    compared: Iterable[Entry],
    judged: Mapping[str, Mapping[str, Judged]],
    costs: MakingCosts,
) -> list[_Line]:
    """Of one direction."""
    methods: dict[str, list[Entry]] = {}
    for entry in compared:
        if entry.aux in (None, aux) and target in entry.targets:
            methods.setdefault(entry.method, []).append(entry)
    lines = []
    for seeds in methods.values():
        results = [(entry, judged[entry.name][target]) for entry in seeds]
        scoring = []
        for entry, result in results:  # with the cost of the scores that it went on from
            before = [judged[entry.beside][target].scoring] if entry.beside else []
            scoring.append(one_after_another([*before, result.scoring]))
        lines.append(_line(aux, results, scoring, costs))
    return lines


def _line(
    aux: str, seeds: Sequence[tuple[Entry, Judged]], scoring: Sequence[Cost], costs: MakingCosts
) -> _Line:
    """Of one method: means over seeds, the interval of the first, and the largest memory."""
    (entry, first), context = seeds[0], seeds[0][1].table.context
    row: dict[str, Cell] = {"auxiliary": aux, "dataset": context.dataset, "split": context.split}
    row |= {"method": entry.method, "supervision": entry.supervision}
    for name in ("backbone", "method_protocol", "protocol", "resolution"):
        row[name] = getattr(context, name)
    row["seeds"] = ";".join(str(one.seed) for one, _ in seeds if one.seed is not None)
    cells = [entry.method, entry.supervision]
    for metric in METRICS:
        values = np.array([one.table.mean.metrics.get(metric, math.nan) for _, one in seeds])
        deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        row[metric], row[f"{metric}_std"] = float(values.mean()), deviation
        cells.append(digits(float(values.mean()), deviation))
        if interval := first.intervals.get(metric):
            row[f"{metric}_low"], row[f"{metric}_high"] = interval
            cells[-1] += f" [{interval.low:.3f}, {interval.high:.3f}]"
    making = [costs.of(one.artefacts, one.making) for _, one in seeds]
    for name, each in (("making", making), ("scoring", scoring)):
        seconds = float(np.mean([cost.seconds for cost in each]))
        mebibytes = float(np.max([cost.mebibytes for cost in each]))
        row |= {f"{name}_seconds": seconds, f"{name}_mib": mebibytes}
        cells.append("–" if math.isnan(seconds) else f"{seconds:.1f} / {mebibytes:.0f}")
    return _Line(row, tuple(cells))


def _table(lines: Sequence[_Line]) -> Table:
    """Of one direction."""
    row = lines[0].row
    caption = (
        f"{row['auxiliary']} → {row['dataset']} ({row['split']} split); {row['backbone']}; metrics "
        f"protocol {row['protocol']}, resolution {row['resolution']}; mean ± deviation over seeds "
        f"{row['seeds']}, and the 95 % bootstrap interval over images of the first. Making: all "
        "that is fitted for one seed, its SAE included (–: it was there already, made elsewhere); "
        "scoring: tokens to maps and image scores of the target. Each is the time of one process, "
        "and the peak of memory of its own beyond an idle process with its libraries."
    )
    heads = ("Method", "Supervision", *(LABELS[metric] for metric in METRICS))
    columns = (*heads, "Making, s / MiB", "Scoring, s / MiB")
    return Table(caption, columns, tuple(line.cells for line in lines))
