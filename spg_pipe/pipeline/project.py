"""The pipeline in a folder of a user: its files, its recipe, DVC."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from spg_pipe.artefacts.files import write_json, write_text
from spg_pipe.errors import SpgError, Terminated, listed
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.datasets import require_in_project
from spg_pipe.pipeline.run import image_size
from spg_pipe.recipe.params import DEFAULT_PARAMS, Params, load_params, parse_params
from spg_pipe.recipe.reader import parse_yaml, read_text
from spg_pipe.recipe.ready_made import completed, fill_recipe, project_folder

STARTING_RECIPE = "own"
SECTIONS = Path("artifacts/recipe")
"""Where DVC's stages find their sections: a fixed place, wherever the recipe has its artefacts."""
_SECONDS_TO_END = 10
"""In which DVC and its stage end after Ctrl-C, before they are told once more."""
_IGNORED = ("artifacts/*", "!artifacts/metrics/", "predictions/", "explanations/", "dvc_plots/")
"""For .gitignore: what is made again, but for metrics, which are small."""


def recipe_text(name: str, folders: Mapping[str, Path], base: Path = Path()) -> str:
    """The text of a ready-made recipe, or of a file `*.yaml`, complete for `dvc repro`.

    `folders`: place of a ready-made recipe (`data`, `mvtec`, `visa`) → folder, relative to `base`.
    An `SpgError` if there is no such recipe, or it is not valid, or its folders are not those
    given.
    """
    if Path(name).suffix not in (".yaml", ".yml"):
        text = fill_recipe(name, folders, base)
    elif folders:
        raise SpgError(f"{name} is a file, which names its folders itself: leave --data out.")
    else:
        load_params(Path(name))  # refuses what is no text
        text = read_text(Path(name))
    params = parse_params(parse_yaml(text, name), name)
    return completed(text, params, image_size(params))


def write_sections(params: Params, results: Path) -> None:
    """Write artifacts/recipe/SECTION.json, all of a checked recipe, which DVC's stages depend on.

    A section that the recipe leaves out is there with its defaults, and `results` (a YAML file,
    what results depend on besides) is in each. An `SpgError` if the recipe names places elsewhere.
    """
    require_in_project(params)
    shared = parse_yaml(read_text(results), str(results))
    for name, value in params.model_dump(mode="json").items():
        write_json(SECTIONS / f"{name}.json", {name: value, "results": shared})
    for kind in ("sae", "detectors", "scores", "metrics"):  # of which a recipe may make none
        (params.artifacts / kind / params.name).mkdir(parents=True, exist_ok=True)


def init(folder: Path, console: Console, recipe: str | None, folders: Mapping[str, Path]) -> None:
    """Put the pipeline into a user's folder: dvc.yaml, stages/, params.yaml, DVC's settings.

    Files that are there and differ are never replaced: an `SpgError` lists them. A recipe that is
    there stays, unless another one is asked for.

    Parameters
    ----------
    folder
        In a Git repository or not; made where it is missing.
    recipe
        As `recipe_text` takes it; None: the starting recipe, whose folder need not be there yet.
    folders
        As `recipe_text` takes them.
    """
    files = pipeline_files()
    active = folder / DEFAULT_PARAMS
    if recipe is not None or folders or not _is_recipe(active):
        files[str(DEFAULT_PARAMS)] = _first_recipe(folder, recipe, folders)
    there = [name for name in files if (folder / name).exists()]
    if taken := [name for name in there if not _holds(folder / name, files[name])]:
        raise SpgError(
            f"{folder} has other files of these names, which are left as they are: "
            f"{listed(taken, 20)}. Move them away, or name another folder."
        )
    write_files(folder, files)
    _ignore(folder / ".gitignore")
    if not _has_dvc(folder):
        init_dvc(folder, git=_repository(folder) is not None)
    params = load_params(active)
    console.say(f"{folder} has the pipeline: dvc.yaml, stages/ and the recipe {params.name}.")
    made = {one.root for one in params.demo_sets} | {one.root for one in params.synthetic_sets}
    for root in [data.root for data in params.datasets if data.root not in made]:
        if not (folder / root).is_dir():
            what = "good/, and a folder for each kind of defect with masks in ground_truth/"
            console.say(f"Put images into {folder / root} ({what}), or name another in {active}.")
    console.result({"folder": folder.resolve()}, "\n".join(_next_commands(folder, params)))


def pipeline_files() -> dict[str, str]:
    """dvc.yaml and the scripts of its stages: path → text."""
    project = project_folder()
    paths = [project / "dvc.yaml", *sorted((project / "stages").glob("*.*"))]
    texts = {path: path.read_text("utf-8") for path in paths if path.is_file()}
    return {path.relative_to(project).as_posix(): text for path, text in texts.items()}


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts below a folder; a file that has its text already keeps its time."""
    for name, text in files.items():
        if not _holds(folder / name, text):
            write_text(folder / name, text)


def init_dvc(folder: Path, *, git: bool) -> None:
    """Make `folder` a DVC repository with the project's settings; an `SpgError` if DVC fails."""
    options = ["--no-scm"] if not git else [] if (folder / ".git").exists() else ["--subdir"]
    if run_dvc(folder, "init", "-q", *options, quiet=True):
        raise SpgError(f"`dvc init` failed in {folder} (message above).")
    settings = (project_folder() / ".dvc" / "config").read_text("utf-8")
    if not git:
        settings = settings.replace("[core]", "[core]\n    no_scm = true")
    write_text(folder / ".dvc" / "config", settings)


def run_dvc(folder: Path, *arguments: str, quiet: bool) -> int:
    """The exit code of `dvc …` in a folder; the stages' `python` is this one."""
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}  # `dvc init` has no settings yet
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    output = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "dvc", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=output) as process:
        try:
            return process.wait()
        except KeyboardInterrupt as stop:
            # Ctrl-C in a terminal reaches DVC and its stage, too; SIGTERM this process alone.
            seconds = 0 if isinstance(stop, Terminated) else _SECONDS_TO_END
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                    break
                _end_stage(process.pid)
                seconds = 1
            raise


def _end_stage(dvc: int) -> None:
    """Have DVC end by itself, which lets go of its locks: its stage first, for which it waits."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(dvc)
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        process.send_signal(signal.SIGINT)  # as long as a stage runs DVC ignores it


def activation() -> list[str]:
    """The command that makes `spg-pipe` and the stages' `python` those of this environment.

    Nothing if they are already, or if it is no virtual environment.
    """
    here, installed = Path(sys.executable).parent, shutil.which("spg-pipe")
    script = here / "activate"
    if (installed and Path(installed).parent == here) or not script.exists():
        return []
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return [f"source {shlex.quote(str(script))}"]


def _first_recipe(folder: Path, recipe: str | None, folders: Mapping[str, Path]) -> str:
    """The text of params.yaml, with folders as they are called from `folder`."""
    if recipe is None and not folders:
        text = read_text(project_folder() / "recipes" / f"{STARTING_RECIPE}.yaml")
        return text.replace("{data}", "images")
    whole, seen = folder.resolve(), {}
    for place, given in folders.items():
        root = given.resolve()
        seen[place] = root.relative_to(whole) if root.is_relative_to(whole) else root
    return recipe_text(recipe or STARTING_RECIPE, seen, folder)


def _is_recipe(path: Path) -> bool:
    """Whether a file is a recipe, and no other project's parameters."""
    with suppress(SpgError):
        load_params(path)
        return True
    return False


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _ignore(path: Path) -> None:
    """Add to .gitignore what it lacks."""
    text = path.read_text("utf-8") if path.exists() else ""
    if missing := [line for line in _IGNORED if line not in text.splitlines()]:
        gap = "" if not text or text.endswith("\n") else "\n"
        write_text(path, text + gap + "".join(f"{line}\n" for line in missing))


def _repository(folder: Path) -> Path | None:
    """The root of the Git repository that a folder is in."""
    whole = folder.resolve()
    return next((above for above in (whole, *whole.parents) if (above / ".git").exists()), None)


def _has_dvc(folder: Path) -> bool:
    """Whether a folder is in a DVC repository, which is not larger than the Git repository."""
    whole, root = folder.resolve(), _repository(folder)
    above = [one for one in whole.parents if root and one.is_relative_to(root)]
    return any((one / ".dvc").is_dir() for one in (whole, *above))


def _next_commands(folder: Path, params: Params) -> list[str]:
    """What to do in the new project, as a shell takes it."""
    away = folder.resolve() != Path.cwd()
    lines = [*activation(), *([f"cd {shlex.quote(str(folder))}"] if away else []), "dvc repro"]
    if _repository(folder):
        files = [".dvc", ".dvcignore", ".gitignore", "dvc.yaml", str(DEFAULT_PARAMS), "stages"]
        there = [name for name in files if (folder / name).exists()]
        words = shlex.join(["git", "add", *there, "dvc.lock", str(params.artifacts / "metrics")])
        lines += [f"{words} && git commit -m 'The pipeline and its state'"]
    return lines
