"""Running the command line and the DVC pipeline as a user does.

A process of its own costs seconds of CPU time for PyTorch's import alone. So most commands run in
this process, through the same entry points with the same arguments; `spg_process` and `dvc` are
for what only a real process shows: the installed script, exit codes, what is imported, DVC itself.
"""

import contextlib
import io
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from spg_pipe.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    """This environment first on the PATH, and no way to a model hub."""
    return os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "GIT_AUTHOR_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
    }


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command's result, never raising."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def spg_process(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`spg-pipe …` in a folder, as a process."""
    return run(BIN / "spg-pipe", *arguments, cwd=cwd)


def spg(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`spg-pipe …` in a folder, in this process; what no message is made of is raised."""
    return here(main, ["spg-pipe", *map(str, arguments)], cwd)


def run_stages(folder: Path) -> None:
    """Run every stage that `dvc repro` would run in a fresh folder, in this process.

    DVC resolves dvc.yaml with params.yaml and orders the stages. As DVC does, this insists that
    what a stage depends on is there before it runs, and what it declares is there afterwards.
    """
    for stage in _stages(folder):
        for dep in stage.deps:
            assert dep.fs.exists(dep.fs_path), f"{stage.addressing} lacks {dep.fs_path}"
        must(run_stage(stage.name, folder))
        for out in stage.outs:
            assert out.fs.exists(out.fs_path), f"{stage.addressing} made no {out.fs_path}"


def run_stage(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script of one stage, `train_sae@demo-visa-111`, in this process as DVC runs it."""
    script = ROOT / "stages" / f"{name.partition('@')[0]}.py"
    start = partial(runpy.run_path, str(script), run_name="__main__")
    with mock.patch.dict(os.environ, DVC_STAGE=name):
        return here(start, [str(script)], folder)


def _stages(folder: Path) -> list[Any]:
    """DVC's stages of the folder, each after those that it depends on."""
    from dvc.repo import Repo
    from networkx import lexicographical_topological_sort

    with warnings.catch_warnings(), Repo(str(folder)) as repo:
        warnings.simplefilter("ignore", DeprecationWarning)  # DVC's own
        # DVC's edges lead from a stage to those that it depends on.
        graph = repo.index.graph.reverse()
        return list(lexicographical_topological_sort(graph, key=lambda stage: stage.addressing))


def here(start: Callable[[], Any], argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call a program's entry point with these arguments, in this folder."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            start()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def must(result: subprocess.CompletedProcess[str]) -> str:
    """The stdout of a command that succeeded."""
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def one_message(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed as it should: exit 1, `Error: …`, no traceback."""
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.count("Error: ") == 1, result.stderr
    return result.stderr


def pipeline_folder(folder: Path, *, git: bool = False) -> Path:
    """A folder with the project's pipeline files and a DVC repository, in git or without it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "stages", folder / "stages")
    if not git:
        must(dvc("init", "--no-scm", "-q", cwd=folder))
        return folder
    # As in a clone of the project: its own .gitignore and DVC settings, everything committed.
    shutil.copy(ROOT / ".gitignore", folder)
    must(run("git", "init", "-q", cwd=folder))
    must(dvc("init", "-q", cwd=folder))
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    """Commit everything that git does not ignore."""
    must(run("git", "add", "-A", cwd=folder))
    must(run("git", "commit", "-q", "-m", "State", cwd=folder))


def dvc(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`dvc …` of this environment."""
    return run(sys.executable, "-m", "dvc", *arguments, cwd=cwd)


def edit_params(folder: Path, changes: dict[str, Any]) -> None:
    """Change params.yaml; keys are `section.key`."""
    path = folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    for place, value in changes.items():
        *sections, key = place.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
