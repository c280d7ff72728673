"""Recipes: ready-made params.yaml files, with places for the folders of a user's data."""

import json
import re
from itertools import takewhile
from pathlib import Path

from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import parse_params
from spg_pipe.recipe.reader import parse_yaml, read_text

_PLACE = re.compile(r"\{([a-z]+)\}")
_COMMENT = re.compile(r"# (?!spg-pipe )")


def recipes_folder() -> Path:
    """recipes/ of the checkout: beside the working directory's dvc.yaml, or of this package.

    An `SpgError` if there is none, for instance in an installation without a checkout.
    """
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / "recipes").is_dir() and (root / "dvc.yaml").is_file():
            return root / "recipes"
    raise SpgError(
        "The recipes and dvc.yaml belong to the project's checkout, and none was found here; an "
        "installed package has none. Run the command in a clone or the unpacked source archive. "
        "A recipe of your own needs neither: write it (the README shows one), name it by --params."
    )


def list_recipes() -> list[tuple[str, str]]:
    """Names and first comment lines of the recipes, sorted."""
    recipes = []
    for path in sorted(recipes_folder().glob("*.yaml")):
        comments = takewhile(_COMMENT.match, read_text(path).splitlines())
        recipes.append((path.stem, " ".join(line[2:] for line in comments)))
    return recipes


def fill_recipe(name: str, folders: dict[str, Path]) -> str:
    """The text of a recipe with its places filled.

    Parameters
    ----------
    folders : dict
        Place (`data`, `mvtec`, `visa`) → folder.

    An `SpgError` if the recipe is unknown, a place is not filled, or a folder does not exist.
    """
    path = recipes_folder() / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(stem for stem, _ in list_recipes())
        raise SpgError(f"There is no recipe {name!r}. There are: {known}.")
    text = read_text(path)
    places = set(_PLACE.findall(text))
    if places != set(folders):
        needed = " ".join(f"--{place} DIR" for place in sorted(places)) or "no folders"
        given = " ".join(f"--{place}" for place in folders) or "none"
        raise SpgError(f"Recipe {name} needs {needed}; found {given}.")
    for place, folder in folders.items():
        if not folder.is_dir():
            raise SpgError(f"--{place} {folder}: there is no such folder.")
        quoted = json.dumps(folder.as_posix(), ensure_ascii=False)[1:-1]  # as in YAML's quotes
        text = text.replace("{" + place + "}", quoted)
    params = parse_params(parse_yaml(text, f"recipe {name}"), f"recipe {name}")
    absent = [
        str(data.root / part)
        for data in params.datasets
        for part in data.sets
        if data.layout != "synthetic" and not (data.root / part).is_dir()  # that is made
    ]
    if absent:
        which = f"{', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not there"
        raise SpgError(f"Recipe {name} needs {which}; the README says what the folder holds.")
    return text
