"""A recipe with other values of some of its settings: what `choose` and `sweep` run."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.pipeline.checked import checked_sae
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.training import train_sae
from spg_pipe.recipe.params import parse_params


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


def combinations(
    run: RecipeRun, axes: Mapping[str, Sequence[Any]], what: str, sections: Sequence[str]
) -> list[Setting]:
    """The recipe once for every combination of some values.

    Parameters
    ----------
    axes : dict of `section.key`, or a whole `section`, → values
        Of `sections` alone.
    what : str
        The recipe's section that lists them, for messages.

    Raises
    ------
    SpgError
        If a key is none, or a combination is not valid.
    """
    for key in axes:
        section = key.partition(".")[0]
        if section != key and section in axes:
            raise SpgError(f"{what}: {section} and {key} both set it; give one of them.")
        if section not in sections:
            expected = ", ".join(sections)
            raise SpgError(f"{what}: {key}: expected one of {expected}, and a parameter.")
    settings = []
    each = [list({repr(value): value for value in values}.values()) for values in axes.values()]
    for chosen in itertools.product(*each):
        setting = Setting(dict(zip(axes, chosen, strict=True)), run)
        content = run.params.model_dump(mode="json")
        for key, value in setting.values.items():
            _set(content, key, value, what)
        params = parse_params(content, f"{what} {setting.name}")
        settings.append(setting._replace(run=run.with_params(params)))
    return settings


def _set(content: dict[str, Any], key: str, value: Any, what: str) -> None:
    *sections, last = key.split(".")
    if not sections and not isinstance(value, dict):
        raise SpgError(f"{what}: {key}: a whole section needs values such as {{alias: NAME}}.")
    for name in sections:
        if not isinstance(content.get(name), dict):
            raise SpgError(f"{what}: {key}: {name} is no section.")
        content = content[name]
    content[last] = value


def short(value: Any) -> str:
    """A value as in YAML; a backbone's section by its alias."""
    if value is None:
        return "null"
    return str(value.get("alias", value)) if isinstance(value, dict) else str(value)


def train_missing_saes(settings: Sequence[Setting], aux: str, seed: int) -> None:
    """Every SAE that the settings need and that is not there yet, one after the other."""
    for run in {one.run.paths.sae(aux, seed): one.run for one in settings}.values():
        store = checked_store(run, find_dataset(run.params, aux))
        if not is_there(partial(checked_sae, run, store, aux, seed)):
            train_sae(run, aux, seed)


def is_there(check: Callable[[], object]) -> bool:
    """Whether an artefact is there and fits, as far as a check looks."""
    try:
        check()
    except (NotThereError, DamagedError):
        return False
    return True
