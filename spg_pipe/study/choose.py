"""`spg-pipe choose`: settings chosen on an auxiliary set alone → a recipe with them.

See docs/recipes.md, "Choosing". How settings are judged is in `held_out` and `held_out_banks`.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spg_pipe.artefacts.files import write_text
from spg_pipe.bank.few_shot import says
from spg_pipe.errors import SpgError, UnsuitableError
from spg_pipe.metrics import write_csv
from spg_pipe.metrics.tables import seen_in
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Update
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Params
from spg_pipe.report.tables import Table, digits
from spg_pipe.report.text import plain
from spg_pipe.sae.quality import seeds_stability
from spg_pipe.sae.run import SaeRun, read_quality
from spg_pipe.study.held_out import Candidate, Judgement, best, judge_candidates, mean_of, merit
from spg_pipe.study.held_out_banks import judge_banks
from spg_pipe.study.settings import Setting, combinations, train_missing_saes

NORMALS = 4
"""Normal images of a category that few-shot methods see."""
_SECTIONS = ("sae", "guides", "decision")
_BANK = "bank"
_HEADS = {
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "merit": "Merit",
    "r2": "R²",
    "dead_share": "Dead",
    "stability": "Stability",
}


class Choice(NamedTuple):
    """What was chosen for one auxiliary set."""

    values: Mapping[str, Any]
    """`guides.atoms` → 32."""
    rows: Sequence[Mapping[str, Any]]
    """A row for each setting and held-out part, then their mean; means over seeds."""
    table: str
    path: Path
    """The recipe with these values, for this auxiliary set and its directions."""


class _Round(NamedTuple):
    """The settings of one round, the zero-shot ones or those of the bank, and how they did."""

    chosen: Setting
    rows: Sequence[Mapping[str, Any]]
    table: str


def choose(run: RecipeRun, aux: str, *, normals: int = NORMALS) -> Choice:
    """Judge every combination of the recipe's `choose` on held-out parts of an auxiliary set.

    Settings of `bank` come second, with what was chosen of the others. SAEs that are missing are
    trained.

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
    zero_shot, banks = _axes(run)
    settings = combinations(run, zero_shot, "choose", _SECTIONS)
    _require_closed_form(settings)
    combinations(run, banks, "choose", (_BANK,))  # a value that is not valid is said at once
    for seed in run.params.seeds:
        train_missing_saes(settings, aux, seed)
    judged, chosen, rounds = _Auxiliary(run, aux), settings[0], []
    if zero_shot:
        rounds.append(judged.choose(settings))
        chosen = rounds[0].chosen
    if banks:
        try:
            of_bank = combinations(chosen.run, banks, "choose", (_BANK,))
            rounds.append(judged.choose_bank(chosen, of_bank, normals))
        except UnsuitableError as error:
            if not zero_shot:
                raise
            run.console.say(f"Nothing of bank is chosen on {aux}: {error}")
    values = {key: value for one in rounds for key, value in one.chosen.values.items()}
    chosen = Setting(values, rounds[-1].chosen.run)
    rows = [row for one in rounds for row in one.rows]
    table, recipe = run.paths.choice(aux, "csv"), run.paths.choice(aux, "yaml")
    write_csv(table, rows)
    write_text(recipe, _recipe(chosen.run.params, aux, table))
    run.console.say(f"Chosen on {aux}: {chosen.name} → {recipe}")
    return Choice(values, rows, "\n\n".join(one.table for one in rounds), recipe)


def _axes(run: RecipeRun) -> tuple[Mapping[str, Sequence[Any]], Mapping[str, Sequence[Any]]]:
    """Of the zero-shot settings, and of the bank."""
    axes = run.params.choose
    if not axes:
        raise SpgError(
            "The recipe has no `choose:` section, for instance `choose: {guides.atoms: [32, 16]}`: "
            "there is nothing to choose from. The recipe spg-plus has one."
        )
    banks = {key: values for key, values in axes.items() if key.partition(".")[0] == _BANK}
    return {key: values for key, values in axes.items() if key not in banks}, banks


def _require_closed_form(settings: Sequence[Setting]) -> None:
    for params in (setting.run.params for setting in settings):
        if params.guides.kind != "contrast" or params.score.rule != "additive":
            raise SpgError(
                "choose is for guides.kind: contrast with score.rule: additive, which are made in "
                f"closed form; found {params.guides.kind} and {params.score.rule}. Compare other "
                "settings with `spg-pipe sweep`."
            )


class _Auxiliary:
    """An auxiliary set on which settings are chosen."""

    def __init__(self, run: RecipeRun, aux: str) -> None:
        self._run, self._aux = run, aux
        self._store = checked_store(run, find_dataset(run.params, aux))
        self._device = choose_device(run.device)
        self._load = cache(SaeRun.load)  # many settings share an SAE
        self._supervision = seen_in(self._store.synthetic)

    def choose(self, settings: Sequence[Setting]) -> _Round:
        """Among zero-shot settings."""

        def judge(seed: int, update: Update) -> list[Judgement]:
            candidates = [self._candidate(setting, seed) for setting in settings]
            return judge_candidates(self._store, candidates, device=self._device, progress=update)

        return self._round("settings", settings, judge, self._supervision)

    def choose_bank(self, base: Setting, settings: Sequence[Setting], normals: int) -> _Round:
        """Among settings of the bank, beside a zero-shot setting."""
        banks = [setting.run.params.bank for setting in settings]

        def judge(seed: int, update: Update) -> list[Judgement]:
            candidate = self._candidate(base, seed)
            options = {"normals": normals, "seed": seed}
            return judge_banks(
                self._store, candidate, banks, **options, device=self._device, progress=update
            )

        return self._round("parts", settings, judge, f"{self._supervision}; {says([normals])}")

    def _candidate(self, setting: Setting, seed: int) -> Candidate:
        params = setting.run.params
        saes = self._load(self._sae(setting, seed))
        return Candidate(saes, params.guides.atoms, params.decision)

    def _sae(self, setting: Setting, seed: int) -> Path:
        return checked_sae(setting.run, self._store, self._aux, seed)

    def _round(
        self,
        unit: str,
        settings: Sequence[Setting],
        judge: Callable[[int, Update], list[Judgement]],
        supervision: str,
    ) -> _Round:
        """Judge settings with every seed: the best of them, and the rows and the table of all."""
        seeds, by_seed = self._run.params.seeds, []
        for seed in seeds:
            with self._run.console.progress(f"choose {self._aux} seed {seed}", unit) as update:
                by_seed.append(judge(seed, update))
        judged: list[Judgement] = [
            {part: mean_of([judgement[part] for judgement in each]) for part in each[0]}
            for each in zip(*by_seed, strict=True)
        ]
        rows: list[Mapping[str, Any]] = []
        means, describe = [], cache(_dictionaries)
        for setting, judgement in zip(settings, judged, strict=True):
            about = {**setting.values, "supervision": supervision}
            rows += [about | {"part": part} | f._asdict() for part, f in judgement.items()]
            mean = mean_of(list(judgement.values()))._asdict() | {"merit": merit(judgement)}
            if any(key.startswith("sae.") for key in setting.values):
                mean |= describe(tuple(self._sae(setting, seed) for seed in seeds))
            rows.append(about | {"part": "mean"} | mean)
            means.append((", ".join(str(value) for value in setting.values.values()), mean))
        means.sort(key=lambda line: -line[1]["merit"])
        shown = [name for name in _HEADS if name in means[0][1]]
        caption = (
            f"Auxiliary {self._aux}, each of {', '.join(judged[0])} held out in turn; supervision: "
            f"{supervision}; means over parts and seeds {', '.join(map(str, seeds))}, maps at a "
            "quarter of the size."
        )
        columns = (", ".join(settings[0].values), *(_HEADS[name] for name in shown))
        cells = tuple((name, *(digits(mean[key]) for key in shown)) for name, mean in means)
        return _Round(settings[best(judged)], rows, plain(Table(caption, columns, cells)))


def _dictionaries(folders: tuple[Path, ...]) -> dict[str, float]:
    """R², dead share and, of several seeds, stability: means over layers and seeds."""
    layers = [layer for folder in folders for layer in read_quality(folder).values()]
    found = {
        "r2": statistics.fmean(layer.r2 for layer in layers),
        "dead_share": statistics.fmean(layer.dead_share for layer in layers),
    }
    if alike := seeds_stability([SaeRun.load(folder) for folder in folders]):
        found["stability"] = statistics.fmean(alike.values())
    return found


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
