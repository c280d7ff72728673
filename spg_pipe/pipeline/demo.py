"""`spg-pipe demo`: the whole pipeline in a folder of its own, whatever params.yaml holds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from spg_pipe.artefacts.files import write_text
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.recipe.params import load_params
from spg_pipe.recipe.ready_made import fill_recipe, recipes_folder


def run_demo(folder: Path, console: Console) -> None:
    """Run recipes/demo.yaml with DVC in `folder` and print a table per direction.

    An `SpgError` if the pipeline fails; its own messages come first.
    """
    checkout = recipes_folder().parent
    _lay_out(folder, checkout)
    console.say(f"Running the demo's pipeline in {folder} (dvc repro) …")
    if _dvc(folder, "repro", quiet=console.verbosity == 0):
        raise SpgError(f"The demo's pipeline failed (messages above). It ran in {folder}.")
    _print_tables(folder, console)


def _lay_out(folder: Path, checkout: Path) -> None:
    """Put the pipeline's files there; unchanged files keep DVC from doing anything again."""
    if folder.exists() and any(folder.iterdir()) and not (folder / ".dvc").is_dir():
        raise SpgError(f"{folder} is not empty and is no demo folder. Choose another --folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "params.yaml", fill_recipe("demo", {}))
    shutil.copy2(checkout / "dvc.yaml", folder / "dvc.yaml")
    shutil.copytree(
        checkout / "stages",
        folder / "stages",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    if not (folder / ".dvc").is_dir() and _dvc(folder, "init", "--no-scm", "-q", quiet=True):
        raise SpgError(f"`dvc init` failed in {folder}.")
    settings = (checkout / ".dvc" / "config").read_text()
    write_text(folder / ".dvc" / "config", settings.replace("[core]", "[core]\n    no_scm = true"))


def _dvc(folder: Path, *arguments: str, quiet: bool) -> int:
    """The exit code of `dvc …` in the demo's folder."""
    # The stages call `python`: it must be this environment's.
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    output = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=output, check=False)
    return done.returncode


def _print_tables(folder: Path, console: Console) -> None:
    from spg_pipe.metrics import flat_rows
    from spg_pipe.pipeline.run import image_size
    from spg_pipe.pipeline.targets import read_metrics, tables_of
    from spg_pipe.recipe.paths import Paths

    params = load_params(folder / "params.yaml")
    paths = Paths(params, image_size(params))
    for direction in params.directions:
        runs = [
            read_metrics(folder / paths.metrics(direction.aux, direction.target, seed))
            for seed in params.seeds
        ]
        console.result(
            [flat_rows(table) for table in runs], "\n\n".join(tables_of(params, runs)) + "\n"
        )
    report = (folder / paths.report / "index.html").resolve()
    console.result({"report": report}, f"Report: {report}")
