"""Running the command line and the DVC pipeline as a user does, in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

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


def spg(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`spg-pipe …` in a folder."""
    return run(BIN / "spg-pipe", *arguments, cwd=cwd)


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
    shutil.copytree(ROOT / "recipes", folder / "recipes")
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
            target = target[section]
        target[key] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
