"""`spg-pipe league`: every candidate decision on every direction of a recipe, in one table.

Candidates are the combinations of the recipe's `choose`, so that `choose`, which sees the auxiliary
set alone, and the league, which sees the targets, judge the same ones. A store is passed over once
for all candidates that share a dictionary and a number of atoms. See docs/recipes.md, "A league".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np

from spg_pipe.artefacts.files import require_writable, write_text
from spg_pipe.decision.components import Sides
from spg_pipe.decision.fit import fit_decision, measure
from spg_pipe.decision.model import Decision
from spg_pipe.detector.coarse import (
    coarse_masks,
    finished_map,
    image_auroc,
    known_mean,
    pixel_figures,
)
from spg_pipe.detector.make import DetectorPlan, contrast_guides
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.metrics import Regions, csv_text
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Direction, load_params
from spg_pipe.report.tables import plain
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.choose import SECTIONS
from spg_pipe.study.making import guides_job, making_jobs
from spg_pipe.study.methods import (
    PUBLISHED,
    UNLIKE,
    Entry,
    Stores,
    auxiliaries,
    stores_of,
    zero_shot,
)
from spg_pipe.study.runner import Job, run_jobs
from spg_pipe.study.settings import (
    Result,
    Setting,
    combinations,
    require_default_method,
    require_whole_images,
    train_missing_saes,
)
from spg_pipe.study.standings import LEAGUE_FIGURES, Standings, others_of

CANDIDATES = "candidates"
Found = dict[str, np.ndarray]
"""Target → figures: (candidates, 4), or (4,) of a baseline."""


def league(run: RecipeRun) -> Result:
    """Judge every combination of the recipe's `choose` on every direction, with every seed.

    SAEs, and trained guides of the published recipe, are made if they are missing. Jobs run in
    processes of their own, as those of `compare`. An `SpgError` if the recipe has no `choose`, does
    not use contrast guides and the additive rule, or some target is part of every direction.

    Returns
    -------
    Result
        See `Standings.rows`; also written to league/<name>.csv.
    """
    settings, ways = _settings(run), run.params.directions
    require_writable(path := run.paths.league)
    run = replace(run, console=replace(run.console, bars=False))  # bars of jobs would overlap
    stores = stores_of(run)
    require_whole_images(stores, "league")
    for aux, seed in product(auxiliaries(run, stores), run.params.seeds):
        train_missing_saes(settings, aux, seed)
    chosen = _chosen(run, settings)
    jobs, methods = _jobs(run, settings, stores)
    found: dict[str, Found] = {}
    for number, (name, result) in enumerate(run_jobs(jobs, choose_device(run.device)), 1):
        found[name] = result
        run.console.say(f"{number} of {len(jobs)} done: {name}")
    figures = {
        method: over_ways([(aux, found[name]) for name, aux in of_method], ways)
        for method, of_method in methods.items()
    }
    values, candidates = tuple(each.values for each in settings), figures.pop(CANDIDATES)
    standings = Standings(ways, values, candidates, figures, chosen)
    about = {
        "backbone": run.params.backbone.alias,
        "method_protocol": run.params.method.protocol,
        "protocol": "exact, maps at a quarter of the size",
        "seeds": list(run.params.seeds),
    }
    write_text(path, csv_text(rows := standings.rows(about)))
    run.console.say(f"League {run.params.name} → {path}")
    said = "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    return Result(rows, "\n\n".join(map(plain, standings.tables(f"{said}."))), path)


def _settings(run: RecipeRun) -> list[Setting]:
    ways = run.params.directions
    if not run.params.choose or not ways:
        raise SpgError(
            "A league needs `choose:`, for instance `choose: {guides.atoms: [32, 16]}`, and "
            "`directions:` in the recipe. The recipe spg-plus has both."
        )
    for way in ways:
        others_of(way.target, ways)
    settings = combinations(run, run.params.choose, "choose", SECTIONS)
    for setting in settings:
        require_default_method(setting.run.params, "league")
    return settings


def over_ways(found: Sequence[tuple[str | None, Found]], ways: Sequence[Direction]) -> np.ndarray:
    """(…, ways, 4) of one method, means over seeds; each of `found` is of an auxiliary set."""
    each = [
        known_mean([by_target[way.target] for aux, by_target in found if aux in (None, way.aux)])
        for way in ways
    ]
    return np.stack(each, axis=-2)


def _jobs(
    run: RecipeRun, settings: Sequence[Setting], stores: Stores
) -> tuple[list[Job], dict[str, list[tuple[str, str | None]]]]:
    """What is to be done; and of each method the names of its jobs, each with an auxiliary set."""
    jobs = [*making_jobs(run, stores, (PUBLISHED,))]
    methods: dict[str, list[tuple[str, str | None]]] = {CANDIDATES: []}
    for aux in auxiliaries(run, stores):
        for seed in run.params.seeds:
            name = f"{CANDIDATES} of {aux}, seed {seed}"
            jobs.append(Job(name, partial(judge_candidates, run, settings, aux, seed)))
            methods[CANDIDATES].append((name, aux))
    for entry in zero_shot(run, stores):
        if entry.method not in (PUBLISHED, UNLIKE):
            continue
        outs = {
            target: run.paths.compared(entry.method, entry.aux, target, entry.seed)
            for target in entry.targets
        }
        paths = {target: (Path(stores[target].path), out) for target, out in outs.items()}
        after = (guides_job(entry.guides, str(entry.aux)),) if entry.guides else ()
        jobs.append(Job(entry.name, partial(judge_baseline, entry, paths), after))
        methods.setdefault(entry.method, []).append((entry.name, entry.aux))
    return jobs, methods


def judge_candidates(run: RecipeRun, settings: Sequence[Setting], aux: str, seed: int) -> Found:
    """Fit every candidate on an auxiliary set, and judge its targets: (candidates, 4) each."""
    device, load = choose_device(run.device), cache(SaeRun.load)
    store = checked_store(run, find_dataset(run.params, aux))
    makers: dict[tuple[Path, int], list[int]] = {}
    for number, (_, of) in enumerate(settings):
        key = (checked_sae(of, store, aux, seed), of.params.guides.atoms)
        makers.setdefault(key, []).append(number)
    plans = [
        DetectorPlan.of(settings[numbers[0]].run.params, load(path), seed)
        for (path, _), numbers in makers.items()
    ]
    made, folds = contrast_guides(store, plans, device)
    judges = np.stack([np.zeros(len(store), np.int64), folds + 1], axis=1)
    targets = [way.target for way in run.params.directions if way.aux == aux]
    found = {target: np.empty((len(settings), len(LEAGUE_FIGURES))) for target in targets}
    for each, numbers in zip(made, makers.values(), strict=True):
        measured = measure(store, each.sides, judges, device=device)
        decisions = [
            fit_decision(measured, settings[number].run.params.decision, honest=1).decision
            for number in numbers
        ]
        for target in targets:
            seen = checked_store(run, find_dataset(run.params, target))
            found[target][numbers] = judge_target(seen, each.sides, decisions, device)
    return found


def judge_target(
    store: FeatureStore, sides: Mapping[str, Sides], decisions: Sequence[Decision], device: str
) -> np.ndarray:
    """(n, 4) of decisions that share guides: one pass over the store, and one of maps for each
    weighting of the map.

    `sides` are of the auxiliary set; their first direction judges.
    """
    final = {
        layer: Sides({view: rows[:1] for view, rows in of.directions.items()}, of.basis)
        for layer, of in sides.items()
    }
    measured, regions = measure(store, final, device=device), coarse_masks(store)
    images, figures = np.arange(len(store)), np.empty((len(decisions), len(LEAGUE_FIGURES)))
    for weights in {decision.map_weights for decision in decisions}:
        alike = [n for n, each in enumerate(decisions) if each.map_weights == weights]
        maps = measured.coarse_maps(decisions[alike[0]], 0, images)
        map_of = partial(finished_map, measured, regions, decisions[alike[0]], 0)
        figures[alike, 1:] = pixel_figures(map_of, images, measured.categories, regions)
        for number in alike:
            values = measured.image_values(decisions[number], 0, images, maps)
            scores = np.sum(list(decisions[number].shares(values).values()), axis=0)
            figures[number, 0] = image_auroc(measured.labels, measured.categories, scores)
    return figures


def judge_baseline(entry: Entry, paths: Mapping[str, tuple[Path, Path]]) -> Found:
    """Make a method, and judge its targets by it; `paths`: see `compare.judge`."""
    score, found = entry.make(entry), Found()
    for target, (path, out) in paths.items():
        store = FeatureStore(path)
        scores, regions = score(store, out), coarse_masks(store)
        categories = np.unique(store.array("category").astype(object), return_inverse=True)[1]

        def map_of(
            image: int, scores: Scores = scores, regions: Mapping[int, Regions] = regions
        ) -> np.ndarray:
            return scores.maps(np.array([image]), regions[image].shape)[0]

        labels, images = store.array("label").astype(np.int64), np.arange(len(store))
        auroc = image_auroc(labels, categories, scores.table["score"].to_numpy())
        found[target] = np.array([auroc, *pixel_figures(map_of, images, categories, regions)])
    return found


def _chosen(run: RecipeRun, settings: Sequence[Setting]) -> dict[str, int]:
    """Auxiliary set → the candidate that `choose` took on it; empty if one of them lacks that."""
    chosen = {}
    for aux in dict.fromkeys(way.aux for way in run.params.directions):
        path = run.paths.choice(aux, "yaml")
        try:
            held = load_params(path) if path.is_file() else None
        except SpgError as error:  # chosen with settings that are no more
            run.console.say(f"What `choose` took on {aux} is left out: {error}")
            return {}
        alike = [
            number
            for number, setting in enumerate(settings)
            if held and all(getattr(setting.run.params, s) == getattr(held, s) for s in SECTIONS)
        ]
        if not alike:
            why = "it took none of these settings" if held else f"it was not run on {aux}"
            run.console.say(f"Not compared with what `spg-pipe choose` takes: {why} ({path}).")
            return {}
        chosen[aux] = alike[0]
    return chosen
