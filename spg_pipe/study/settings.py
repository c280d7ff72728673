"""What the studies share: a recipe with other values of some settings, and a result."""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.checked import checked_sae, is_there
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.training import train_sae
from spg_pipe.recipe.params import Params, parse_params
from spg_pipe.store.reader import FeatureStore

_MOST = 10_000
"""Combinations: each costs at least one pass over a store, or days in all."""


class Setting(NamedTuple):
    """One combination of values."""

    values: Mapping[str, Any]
    """`sae.k` → 16; empty: the recipe as it is."""
    run: RecipeRun

    @property
    def name(self) -> str:
        """As messages name it."""
        named = ", ".join(f"{key} = {short(value)}" for key, value in self.values.items())
        return named or "the recipe as it is"


class Result(NamedTuple):
    """What a study found."""

    rows: Sequence[Mapping[str, Any]]
    """What its CSV file holds."""
    table: str
    path: Path
    """The file that it wrote last."""
    values: Mapping[str, Any] = {}
    """What `choose` took: `guides.atoms` → 32."""


def combinations(
    run: RecipeRun, axes: Mapping[str, Sequence[Any]], what: str, sections: Sequence[str]
) -> list[Setting]:
    """The recipe once for every combination of some values.

    An `SpgError` if a key is none, a combination is not valid, or there are more than 10,000.

    Parameters
    ----------
    axes : dict of `section.key`, or a whole `section`, → values
        Of `sections` alone.
    what : str
        The recipe's section that lists them, for messages.
    """
    for key in axes:
        name = key.partition(".")[0]
        if name != key and name in axes:
            raise SpgError(f"{what}: {name} and {key} both set it; give one of them.")
        if name not in sections:
            expected = ", ".join(sections)
            raise SpgError(f"{what}: {key}: expected one of {expected}, and a parameter.")
    if math.prod(map(len, axes.values())) > _MOST:
        raise SpgError(f"{what}: more than {_MOST:,} combinations. List fewer values.")
    settings = []
    for chosen in itertools.product(*axes.values()):
        setting = Setting(dict(zip(axes, chosen, strict=True)), run)
        content = run.params.model_dump(mode="json")
        for key, value in setting.values.items():
            *sections, last = key.split(".")
            section = content
            for name in sections:
                if not isinstance(section.get(name), dict):
                    raise SpgError(f"{what}: {key}: {name} is no section.")
                section = section[name]
            section[last] = value
        params = parse_params(content, f"{what} {setting.name}")
        settings.append(setting._replace(run=run.with_params(params)))
    return settings


def require_default_method(params: Params, command: str) -> None:
    """Refuse other settings than those that a command is for.

    An `SpgError` if guides are not made in closed form, or the rule is not additive.
    """
    if params.guides.kind != "contrast" or params.score.rule != "additive":
        raise SpgError(
            f"{command} is for the default method, guides.kind: contrast with score.rule: "
            f"additive; found {params.guides.kind} and {params.score.rule}. Use `spg-pipe sweep` "
            "for other settings."
        )


def require_whole_images(stores: Mapping[str, FeatureStore], command: str) -> None:
    """Refuse tiles: a command that judges by the tokens of each image as a whole.

    An `SpgError` if a store has tiles.
    """
    for name, store in stores.items():
        if store.spec.backbone.tiles is not None:
            raise SpgError(
                f"{command} judges images as a whole; the store of {name} has tiles. Take {name} "
                "out of extract.tiles and run `spg-pipe extract` again."
            )


def short(value: Any) -> str:
    """A value as in YAML; a backbone's section by its alias."""
    if value is None:
        return "null"
    return str(value.get("alias", value)) if isinstance(value, dict) else str(value)


def train_missing_saes(settings: Sequence[Setting], aux: str, seed: int) -> None:
    """Every SAE that the settings need and that is not there yet, one after the other."""
    for run in {each.run.paths.sae(aux, seed): each.run for each in settings}.values():
        store = checked_store(run, find_dataset(run.params, aux))
        if not is_there(partial(checked_sae, run, store, aux, seed)):
            train_sae(run, aux, seed)
