"""Recipes: ready-made params.yaml files, with places for the folders of a user's data."""

import io
import json
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from ruamel.yaml import YAML

from spg_pipe.errors import SpgError
from spg_pipe.recipe.params import Params, parse_params
from spg_pipe.recipe.reader import parse_yaml, read_text

_PLACE = re.compile(r"\{([a-z]+)\}")
_COMMENT = re.compile(r"# (?!spg-pipe )")


def project_folder() -> Path:
    """The folder with dvc.yaml, stages/ and recipes/: the clone, or its copy in the wheel.

    An `SpgError` if neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent, package / "_project"):
        if (root / "recipes").is_dir() and (root / "dvc.yaml").is_file():
            return root
    raise SpgError(
        f"Neither {package.parent} nor {package / '_project'} holds dvc.yaml and recipes/, which "
        "every installation has. Install spg-pipe again."
    )


def list_recipes() -> list[tuple[str, str]]:
    """Names and first comment lines of the recipes, sorted."""
    recipes = []
    for path in sorted((project_folder() / "recipes").glob("*.yaml")):
        comments = takewhile(_COMMENT.match, read_text(path).splitlines())
        recipes.append((path.stem, " ".join(line[2:] for line in comments)))
    return recipes


def fill_recipe(name: str, folders: Mapping[str, Path], base: Path = Path()) -> str:
    """The text of a recipe with its places filled.

    `folders`: place (`data`, `mvtec`, `visa`) → folder, relative to `base`. An `SpgError` if the
    recipe is unknown, a place is not filled, or a folder does not exist.
    """
    path = project_folder() / "recipes" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(stem for stem, _ in list_recipes())
        raise SpgError(f"There is no recipe {name!r}. There are: {known}; or name a file, x.yaml.")
    text = read_text(path)
    places = set(_PLACE.findall(text))
    if places != set(folders):
        needed = " ".join(f"--{place} DIR" for place in sorted(places)) or "no folders"
        given = " ".join(f"--{place}" for place in folders) or "none"
        raise SpgError(f"Recipe {name} needs {needed}; found {given}.")
    for place, folder in folders.items():
        if not (base / folder).is_dir():
            raise SpgError(f"--{place} {folder}: there is no such folder.")
        quoted = json.dumps(folder.as_posix(), ensure_ascii=False)[1:-1]  # as in YAML's quotes
        text = text.replace("{" + place + "}", quoted)
    params = parse_params(parse_yaml(text, f"recipe {name}"), f"recipe {name}")
    absent = [
        str(data.root / part)
        for data in params.datasets
        for part in data.sets
        if data.layout != "synthetic"  # that is made
        and not (base / data.root / part).is_dir()
    ]
    if absent:
        which = f"{', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not there"
        raise SpgError(f"Recipe {name} needs {which}; the README says what the folder holds.")
    return text


def completed(text: str, params: Params, image_size: int) -> str:
    """A recipe's text with what DVC reads itself, for the names of artefacts, where it is left out.

    Comments and order stay as they are. `params` are the same recipe, read; `image_size` is that of
    its backbone, in pixels.
    """
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 1000
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    backbone = content.setdefault("backbone", {})
    wanted = [
        (content, "artifacts", str(params.artifacts)),
        (content, "seeds", list(params.seeds)),
        (backbone, "alias", params.backbone.alias),
        (backbone, "image_size", image_size),
        *((row, "split", "test") for row in content["datasets"]),
    ]
    missing = [(section, name, value) for section, name, value in wanted if not section.get(name)]
    if not missing:
        return text
    for section, name, value in missing:
        section[name] = value
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()
