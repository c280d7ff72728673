"""`spg-pipe choose`: settings chosen on an auxiliary set alone → a recipe with them.

See docs/recipes.md, "Choosing". How settings are judged is in `held_out`.
"""

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from spg_pipe.artefacts.files import require_writable, write_text
from spg_pipe.detector.coarse import FIGURES, known_mean
from spg_pipe.errors import SpgError
from spg_pipe.metrics import csv_text
from spg_pipe.metrics.tables import seen_in
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Params
from spg_pipe.report.tables import Table, figure, plain
from spg_pipe.sae.quality import seeds_stability
from spg_pipe.sae.run import SaeRun, read_quality
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.held_out import Candidate, PartFigures, best, judge_candidates
from spg_pipe.study.settings import (
    Result,
    Setting,
    combinations,
    require_default_method,
    train_missing_saes,
)

SECTIONS = ("sae", "guides", "decision")
_HEADS = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "merit": "Merit",
    "r2": "R²",
    "dead_share": "Dead",
    "stability": "Stability",
}


def choose(run: RecipeRun, aux: str) -> Result:
    """Judge every combination of the recipe's `choose` on held-out parts of an auxiliary set.

    SAEs that are missing are trained. An `SpgError` if the recipe has no `choose`, does not use
    contrast guides and the additive rule, or the auxiliary set cannot be parted.

    Returns
    -------
    Result
        A row for each setting and held-out part, then their mean; means over seeds. Also written to
        choices/<name>/<aux>-….csv, beside the recipe with these values for this auxiliary set.
    """
    axes, seeds = run.params.choose, run.params.seeds
    if not axes:
        raise SpgError(
            "The recipe has no `choose:` section, for instance `choose: {guides.atoms: [32, 16]}`: "
            "there is nothing to choose from. The recipe spg-plus has one."
        )
    settings = combinations(run, axes, "choose", SECTIONS)
    for setting in settings:
        require_default_method(setting.run.params, "choose")
    require_writable(recipe := run.paths.choice(aux, "yaml"))
    for seed in seeds:
        train_missing_saes(settings, aux, seed)
    store = checked_store(run, find_dataset(run.params, aux))
    saes = [[checked_sae(each.run, store, aux, seed) for seed in seeds] for each in settings]
    parts = _judge(run, aux, store, settings, saes)
    means = known_mean(list(parts.values()))
    merits = known_mean(means, axis=1)
    rows, describe = list[Mapping[str, Any]](), cache(_dictionaries)
    for number, (setting, paths) in enumerate(zip(settings, map(tuple, saes), strict=True)):
        about = {**setting.values, "supervision": seen_in(store.synthetic)}
        for part, figures in (*parts.items(), ("mean", means)):
            named = zip(FIGURES, figures[number].tolist(), strict=True)
            rows.append(about | {"part": part} | dict(named))
        rows[-1] = {**rows[-1], "merit": float(merits[number])}
        if any(key.startswith("sae.") for key in axes):
            rows[-1] = {**rows[-1], **describe(paths)}
    chosen = settings[best(merits)]
    write_text(figures_path := run.paths.choice(aux, "csv"), csv_text(rows))
    write_text(recipe, _recipe(chosen.run.params, aux, figures_path))
    run.console.say(f"Chosen on {aux}: {chosen.name} → {recipe}")
    return Result(rows, plain(_table(run, aux, list(parts), rows)), recipe, chosen.values)


def _table(
    run: RecipeRun, aux: str, parts: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Table:
    """The means, the best first."""
    names = list(run.params.choose)
    means = sorted((row for row in rows if "merit" in row), key=lambda row: -row["merit"])
    shown = [key for key in _HEADS if key in means[0]]
    cells = tuple(
        (", ".join(str(row[name]) for name in names), *(figure(row, key) for key in shown))
        for row in means
    )
    caption = (
        f"Auxiliary {aux}, each of {', '.join(parts)} held out in turn; supervision: "
        f"{means[0]['supervision']}; means over parts and seeds "
        f"{', '.join(map(str, run.params.seeds))}, maps at a quarter of the size."
    )
    return Table(caption, (", ".join(names), *(_HEADS[key] for key in shown)), cells)


def _judge(
    run: RecipeRun,
    aux: str,
    store: FeatureStore,
    settings: Sequence[Setting],
    saes: Sequence[Sequence[Path]],
) -> PartFigures:
    """Of every setting, means over seeds; `saes` are setting by setting, seed by seed."""
    load, device, by_seed = cache(SaeRun.load), choose_device(run.device), []
    detection = run.params.method.detection
    for seed, paths in zip(run.params.seeds, zip(*saes, strict=True), strict=True):
        candidates = [
            Candidate(load(path), each.run.params.guides.atoms, each.run.params.decision)
            for path, each in zip(paths, settings, strict=True)
        ]
        with run.console.progress(f"choose {aux} seed {seed}", "parts") as update:
            by_seed.append(
                judge_candidates(store, candidates, detection, device=device, progress=update)
            )
    return {part: known_mean([judged[part] for judged in by_seed]) for part in by_seed[0]}


def _dictionaries(folders: tuple[Path, ...]) -> dict[str, float]:
    """R², dead share and, of several seeds, stability: means over layers and seeds."""
    layers = [layer for folder in folders for layer in read_quality(folder).layers.values()]
    alike = seeds_stability([SaeRun.load(folder) for folder in folders])
    return {
        "r2": statistics.fmean(layer.r2 for layer in layers),
        "dead_share": statistics.fmean(layer.dead_share for layer in layers),
        **({"stability": statistics.fmean(alike.values())} if alike else {}),
    }


def _recipe(params: Params, aux: str, table: Path) -> str:
    """The active recipe with the chosen values, for one auxiliary set."""
    content = params.model_dump(mode="json")
    content["auxiliaries"] = [aux]
    content["directions"] = [way for way in content["directions"] if way["aux"] == aux]
    content["choose"], content["sweep"] = {}, {}
    head = (
        f"# Chosen by `spg-pipe choose` on {aux} alone; {table.name} beside it has the figures.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
