"""The pipeline in a user's own folder, and recipes: `init`, `recipe list`, `recipe use`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from spg_pipe.cli.options import Options, shared
from spg_pipe.errors import UsageError
from spg_pipe.pipeline.console import Console
from spg_pipe.recipe.params import DEFAULT_PARAMS, load_params

MvtecOption = Annotated[Path | None, Option(help="Folder of MVTec AD.")]
VisaOption = Annotated[Path | None, Option(help="Folder of VisA.")]
DataOption = Annotated[Path | None, Option(help="Folder of other data.")]


@shared("quiet", "as_json")
def init(
    options: Options,
    folder: Annotated[str, Argument(metavar="DIR", help="Your repository, or a new folder.")],
    recipe: Annotated[
        str | None,
        Option(help="See `spg-pipe recipe list`; or a recipe's file [default: own]."),
    ] = None,
    mvtec: MvtecOption = None,
    visa: VisaOption = None,
    data: DataOption = None,
) -> None:
    """Put the pipeline into a folder: dvc.yaml, params.yaml, stages/, DVC; replaces no file."""
    from spg_pipe.pipeline import project

    if not folder.strip():
        raise UsageError("DIR is empty: expected a folder, . for this one.")
    project.init(Path(folder), options.console(), recipe, _given(data, mvtec, visa))


@shared("as_json")
def recipe_list(options: Options) -> None:
    """The recipes that come with the project."""
    from spg_pipe.recipe.ready_made import list_recipes

    found = list_recipes()
    text = "\n".join(f"{name:16} {comment}" for name, comment in found)
    options.console().result(dict(found), text)


@shared("params")
def recipe_use(
    options: Options,
    name: Annotated[
        str,
        Argument(metavar="NAME", help="See `spg-pipe recipe list`; or a recipe's file, x.yaml."),
    ],
    mvtec: MvtecOption = None,
    visa: VisaOption = None,
    data: DataOption = None,
) -> None:
    """Write params.yaml from a recipe, with the folders of your data filled in.

    Of a recipe's own file, what `dvc repro` needs and it leaves out is added.
    """
    from spg_pipe.artefacts.files import write_text
    from spg_pipe.pipeline.project import recipe_text

    write_text(options.params, recipe_text(name, _given(data, mvtec, visa)))
    Console().say(f"{options.params} is now the recipe {name}. {_what_next(options.params)}")


def _what_next(params: Path) -> str:
    """The commands that a recipe is made for."""
    named = "" if params == DEFAULT_PARAMS else f" --params {shlex.quote(str(params))}"
    if load_params(params).sweep:
        return f"Run `spg-pipe sweep{named}`."
    if not named and Path("dvc.yaml").is_file():
        return "Run `dvc repro`."
    same = " with the same option" if named else ""
    why = f"reads {DEFAULT_PARAMS}" if named else "needs the files that `spg-pipe init` writes"
    return (
        f"Run `spg-pipe extract{named}`, then train-sae, train-guides, score, evaluate and report"
        f"{same}; `dvc repro` {why}."
    )


def _given(data: Path | None, mvtec: Path | None, visa: Path | None) -> dict[str, Path]:
    """The folders that fill a recipe's places."""
    given = {"mvtec": mvtec, "visa": visa, "data": data}
    return {place: folder for place, folder in given.items() if folder is not None}


recipe = typer.Typer(help="List recipes, or make one the active recipe.", no_args_is_help=True)
recipe.command("list")(recipe_list)
recipe.command("use")(recipe_use)
