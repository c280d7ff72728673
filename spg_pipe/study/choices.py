"""Settings chosen on an auxiliary set alone → a recipe with them (docs/recipes.md, "Choosing")."""

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from spg_pipe.artefacts.files import write_text
from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.training import train_saes
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Params
from spg_pipe.report.tables import Table
from spg_pipe.report.text import plain
from spg_pipe.study.sweeps import Setting, combinations, is_there, named

if TYPE_CHECKING:
    from spg_pipe.store.reader import FeatureStore
    from spg_pipe.study.choosing import Candidate, Judgement

NORMALS = 4
"""Normal images of a category that few-shot methods see."""
_SECTIONS = ("sae", "guides", "decision")
_BANK = "bank"
_METRICS = ("image_auroc", "pixel_auroc", "pixel_ap")


class Choice(NamedTuple):
    """What was chosen for one auxiliary set."""

    values: dict[str, Any]
    """`guides.atoms` → 32."""
    rows: list[dict[str, Any]]
    """A row a setting and held-out part, then their mean; means over seeds."""
    table: str
    path: Path
    """The recipe with these values, for this auxiliary set and its directions."""


def choose(run: RecipeRun, aux: str, *, normals: int = NORMALS) -> Choice:
    """Judge every combination of the recipe's `choose` on held-out parts of an auxiliary set.

    Settings of `bank` come second, with what was chosen of the others. SAEs that are missing are
    trained, all of a seed in one pass over the store.

    Parameters
    ----------
    normals : int
        Normal images of a category that make its bank.

    Returns
    -------
    Choice
        Its rows are also written to choices/<name>/<aux>-….csv, its recipe beside it.

    Raises
    ------
    SpgError
        If the recipe has no `choose`, does not use contrast guides and the additive rule, or the
        auxiliary set cannot be parted. A set with too few normal images for a bank is an error
        only if there is nothing else to choose; otherwise a note says that nothing of `bank` is
        chosen.
    """
    from spg_pipe.metrics import write_csv
    from spg_pipe.sae.run import SaeRun

    zero_shot, banks = _axes(run)
    settings = _settings(run, zero_shot)
    combinations(run, banks, "choose", (_BANK,))  # a value that is not valid is said at once
    store = checked_store(run, find_dataset(run.params, aux))
    _train(settings, store, aux)
    candidates_of = partial(_candidates, store, aux, lru_cache(maxsize=None)(SaeRun.load))
    chosen, rows, tables = settings[0], [], []
    if zero_shot:
        chosen, found = _choose_zero_shot(run, aux, store, settings, candidates_of)
        rows += found
        tables.append(_table(run.params, aux, list(zero_shot), found))
    if banks:
        axes = combinations(chosen.run, banks, "choose", (_BANK,))
        try:
            one, found = _choose_bank(run, aux, store, chosen, axes, candidates_of, normals)
        except UnsuitableError as error:
            if not zero_shot:
                raise
            run.console.say(f"Nothing of bank is chosen on {aux}: {error}")
        else:
            chosen = Setting(chosen.values | one.values, one.run)
            rows += found
            tables.append(_table(run.params, aux, list(banks), found))
    place = run.paths.choice(aux, "yaml")
    write_csv(run.paths.choice(aux, "csv"), rows)
    write_text(place, _recipe(chosen.run.params, aux, run.paths.choice(aux, "csv")))
    run.console.say(f"Chosen on {aux}: {named(chosen.values)} → {place}")
    return Choice(chosen.values, rows, "\n\n".join(map(plain, tables)), place)


def _axes(run: RecipeRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the zero-shot settings, and of the bank."""
    axes = run.params.choose
    if not axes:
        raise SpgError(
            "The recipe has no `choose:` section, for instance `choose: {guides.atoms: [32, 16]}`: "
            "there is nothing to choose from. The recipe spg-plus has one."
        )
    banks = {place: values for place, values in axes.items() if place.partition(".")[0] == _BANK}
    return {place: values for place, values in axes.items() if place not in banks}, banks


def _settings(run: RecipeRun, axes: dict[str, Any]) -> list[Setting]:
    settings = combinations(run, axes, "choose", _SECTIONS)
    for setting in settings:
        found = setting.run.params
        if found.guides.kind != "contrast" or found.score.rule != "additive":
            raise SpgError(
                "choose is for guides.kind: contrast with score.rule: additive, which are made in "
                f"closed form; found {found.guides.kind} and {found.score.rule}. Compare other "
                "settings with `spg-pipe sweep`."
            )
    return settings


def _candidates(
    store: "FeatureStore", aux: str, load: Any, settings: Sequence[Setting], seed: int
) -> "list[Candidate]":
    """Settings with their SAEs; each SAE is loaded once."""
    from spg_pipe.study.choosing import Candidate

    return [
        Candidate(
            load(checked_sae(setting.run, store, aux, seed)),
            setting.run.params.guides.atoms,
            setting.run.params.decision,
        )
        for setting in settings
    ]


def _choose_zero_shot(
    run: RecipeRun,
    aux: str,
    store: "FeatureStore",
    settings: Sequence[Setting],
    candidates_of: Callable[..., "list[Candidate]"],
) -> tuple[Setting, list[dict[str, Any]]]:
    from spg_pipe.metrics.tables import seen_in
    from spg_pipe.study.choosing import best, judge_candidates

    by_seed = []
    for seed in run.params.seeds:
        with run.console.progress(f"choose {aux} seed {seed}", "settings") as update:
            by_seed.append(
                judge_candidates(
                    store,
                    candidates_of(settings, seed),
                    device=choose_device(run.device),
                    progress=update,
                )
            )
    judged = [_over_seeds(each) for each in zip(*by_seed, strict=True)]
    about: list[dict[str, float]] = [{}] * len(settings)
    if any(place.startswith("sae.") for place in settings[0].values):
        describe = lru_cache(maxsize=None)(_dictionaries)
        seeds = run.params.seeds
        about = [
            describe(tuple(checked_sae(one.run, store, aux, seed) for seed in seeds))
            for one in settings
        ]
    rows = [
        row
        for one, found, saes in zip(settings, judged, about, strict=True)
        for row in _rows(one, found, seen_in(store.synthetic), saes)
    ]
    return settings[best(judged)], rows


def _choose_bank(
    run: RecipeRun,
    aux: str,
    store: "FeatureStore",
    base: Setting,
    settings: Sequence[Setting],
    candidates_of: Callable[..., "list[Candidate]"],
    normals: int,
) -> tuple[Setting, list[dict[str, Any]]]:
    from spg_pipe.bank.few_shot import says
    from spg_pipe.metrics.tables import seen_in
    from spg_pipe.study.choosing import best
    from spg_pipe.study.choosing_banks import judge_banks

    by_seed = []
    for seed in run.params.seeds:
        (one,) = candidates_of([base], seed)
        with run.console.progress(f"choose bank {aux} seed {seed}", "parts") as update:
            by_seed.append(
                judge_banks(
                    store,
                    one,
                    [setting.run.params.bank for setting in settings],
                    normals=normals,
                    seed=seed,
                    device=choose_device(run.device),
                    progress=update,
                )
            )
    judged = [_over_seeds(each) for each in zip(*by_seed, strict=True)]
    sees = f"{seen_in(store.synthetic)}; {says([normals])}"
    rows = [
        row for one, found in zip(settings, judged, strict=True) for row in _rows(one, found, sees)
    ]
    return settings[best(judged)], rows


def _train(settings: Sequence[Setting], store: "FeatureStore", aux: str) -> None:
    distinct = {repr(setting.run.params.sae): setting.run for setting in settings}
    for seed in settings[0].run.params.seeds:
        missing = [
            one
            for one in distinct.values()
            if not is_there(partial(checked_sae, one, store, aux, seed))
        ]
        if missing:
            train_saes(missing, aux, [seed])


def _dictionaries(folders: tuple[Path, ...]) -> dict[str, float]:
    """R², dead share and, of several seeds, stability: means over layers and seeds."""
    from spg_pipe.sae.quality import seeds_stability
    from spg_pipe.sae.run import SaeRun, read_quality

    layers = [layer for folder in folders for layer in read_quality(folder).values()]
    found = {
        "r2": statistics.fmean(layer.r2 for layer in layers),
        "dead_share": statistics.fmean(layer.dead_share for layer in layers),
    }
    if alike := seeds_stability([SaeRun.load(folder) for folder in folders]):
        found["stability"] = statistics.fmean(alike.values())
    return found


def _over_seeds(each: "Sequence[Judgement]") -> "Judgement":
    """The mean over seeds, part by part."""
    from spg_pipe.study.choosing import Judgement, PartResult

    parts = []
    for same in zip(*(one.parts for one in each), strict=True):
        means = (sum(getattr(p, metric) for p in same) / len(same) for metric in _METRICS)
        parts.append(PartResult(same[0].part, *means))
    return Judgement(tuple(parts))


def _rows(
    setting: Setting,
    judged: "Judgement",
    sees: str,
    dictionaries: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    about = setting.values | {"sees": sees}
    rows = [
        about | {"part": part.part, **{m: getattr(part, m) for m in _METRICS}}
        for part in judged.parts
    ]
    mean = {metric: judged.mean(metric) for metric in _METRICS}
    mean |= {"merit": judged.merit} | (dictionaries or {})
    return [*rows, about | {"part": "mean", **mean}]


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


def _table(params: Params, aux: str, axes: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    means = sorted((row for row in rows if row["part"] == "mean"), key=lambda r: -r["merit"])
    parts = ", ".join(dict.fromkeys(row["part"] for row in rows if row["part"] != "mean"))
    figures = {
        "image_auroc": "Image AUROC",
        "pixel_auroc": "Pixel AUROC",
        "pixel_ap": "Pixel AP",
        "merit": "Merit",
        "r2": "R²",
        "dead_share": "Dead",
        "stability": "Stability",
    }
    shown = [name for name in figures if name in means[0]]
    cells = tuple(
        (", ".join(str(row[axis]) for axis in axes), *(f"{row[name]:.3f}" for name in shown))
        for row in means
    )
    caption = (
        f"Auxiliary {aux}, each of {parts} held out in turn; sees {means[0]['sees']}; means over "
        f"parts and seeds {', '.join(map(str, params.seeds))}, maps at a quarter of the size."
    )
    columns = (", ".join(axes), *(figures[name] for name in shown))
    return Table(caption, columns, cells)
