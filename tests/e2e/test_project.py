"""`spg-pipe init`: the pipeline in a user's own folder, with and without Git; recipes for DVC."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from layouts import photos, write_mvtec

from e2e.helpers import ROOT, commit, dvc, environment, must, one_message, run, run_stages, spg
from spg_pipe.detector.model import Detector
from spg_pipe.pipeline.demo import next_commands
from spg_pipe.pipeline.project import activation
from spg_pipe.recipe.params import load_params

SMALL = """
sae: {dict_size: 64, k: 4, epochs: 200}
backbone: {alias: efficientnet-lite0, image_size: 64, layers: [s16]}
"""


def parts(folder: Path) -> Path:
    """A person's labelled images: good/, crack/ and ground_truth/crack/."""
    tree = write_mvtec(folder / "made", ["bolt"], defects=["crack"])
    root = folder / "parts"
    (tree / "bolt" / "test").rename(root)
    (tree / "bolt" / "ground_truth").rename(root / "ground_truth")
    return root


def paste(commands: str, cwd: Path) -> None:
    """Run printed lines as a shell does."""
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    must(done)


@pytest.mark.slow
def test_the_printed_commands_run_the_pipeline_in_ones_own_git_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (reports := tmp_path / "reports").mkdir()
    monkeypatch.setenv("TMPDIR", str(reports))
    repository = tmp_path / "my repo"
    repository.mkdir()
    (repository / ".gitignore").write_text("*.tmp")
    must(run("git", "init", "-q", cwd=repository))
    images = parts(repository)
    printed = must(spg("init", repository, "--data", images, cwd=tmp_path))
    assert [*reports.iterdir()] == []  # DVC has nothing to tell its makers
    recipe = repository / "params.yaml"
    assert load_params(recipe).datasets[0].root == Path("parts")
    assert "# one detector for each" in recipe.read_text()
    text = "".join(
        line for line in recipe.open() if not line.startswith(("sae:", "backbone:", "# backbone"))
    )
    recipe.write_text(text + SMALL)
    paste(printed, tmp_path)
    assert (repository / "artifacts" / "detectors" / "own").is_dir()
    tracked = must(run("git", "ls-files", cwd=repository)).splitlines()
    assert {"dvc.lock", "dvc.yaml", "params.yaml", "stages/recipe.py", ".gitignore"} <= {*tracked}
    assert not [name for name in tracked if name.startswith(("artifacts/", "parts/"))]
    assert (repository / ".gitignore").read_text().startswith("*.tmp\nartifacts/*\n")
    assert "up to date" in must(dvc("repro", cwd=repository))
    must(spg("init", repository, cwd=tmp_path))  # again: nothing is lost, the recipe stays
    assert recipe.read_text().endswith(SMALL)


@pytest.mark.slow
def test_a_recipe_without_its_optional_sections_works_in_every_stage_of_dvc(tmp_path: Path) -> None:
    """With nothing but what is required, and what the names of artefacts hold."""
    folder = tmp_path / "project"
    folder.mkdir()
    parts(folder)
    recipe = f"""
name: bare
artifacts: artifacts
seeds: [111]
datasets: [{{name: parts, layout: folder, root: parts, split: all}}]
auxiliaries: [parts]
directions: []
{SMALL}"""
    (folder / "params.yaml").write_text(recipe)
    must(spg("init", "project", cwd=tmp_path))
    assert (folder / "params.yaml").read_text() == recipe
    run_stages(folder)
    (detector,) = (folder / "artifacts" / "detectors" / "bare").iterdir()
    assert detector.name == "parts-efficientnet-lite0-64-s111"
    assert list((folder / "artifacts" / "report" / "bare").iterdir()) == []


def test_a_recipe_of_ones_own_is_completed_and_keeps_its_comments(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\n"
        "# My parts.\n"
        "datasets: [{name: parts, layout: folder, root: parts}]  # all of them\n"
        "auxiliaries: [parts]\n"
        "directions: []\n"
    )
    must(spg("recipe", "use", "mine.yaml", cwd=tmp_path))
    written = (tmp_path / "params.yaml").read_text()
    assert "# My parts." in written
    assert "# all of them" in written
    added = yaml.safe_load(written)
    assert (added["artifacts"], added["seeds"]) == ("artifacts", [111])
    assert added["backbone"] == {"alias": "efficientnet-lite0", "image_size": 448}
    assert added["datasets"][0]["split"] == "test"
    for file in ("dvc.yaml", "stages"):
        (tmp_path / file).symlink_to(ROOT / file)
    must(dvc("init", "--no-scm", "-q", cwd=tmp_path))
    listed = must(dvc("stage", "list", "--name-only", cwd=tmp_path)).split()
    assert "train_sae@parts-111" in listed
    again = must(spg("recipe", "use", "params.yaml", cwd=tmp_path))
    assert (again, (tmp_path / "params.yaml").read_text()) == ("", written)
    assert "names its folders itself" in one_message(
        spg("recipe", "use", "mine.yaml", "--data", ".", cwd=tmp_path)
    )


def test_the_demos_last_lines_work_when_pasted(
    tmp_path: Path, tiny_detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the demo, in a folder whose name a shell would take apart."""
    monkeypatch.chdir(tmp_path)
    folder = Path("my 'demo' run")
    photos(folder / "artifacts/demo/demo-visa/coins/Data/Images", "Anomaly/0.png", "Normal/1.png")
    detector = folder / "artifacts" / "detectors" / "demo" / "tiny"
    tiny_detector.save(detector)
    *_, predict, explain = next_commands(folder, detector)
    assert (predict.split()[:2], explain.split()[:2]) == (
        ["spg-pipe", "predict"],
        ["spg-pipe", "explain"],
    )
    for line, judged in ((predict, 2), (explain, 1)):
        _, command, judge, images = shlex.split(line)
        assert Detector.load(Path(judge)).fingerprint == tiny_detector.fingerprint
        found = [p for p in (Path(images), *Path(images).rglob("*")) if p.suffix == ".png"]
        assert len(found) == judged, command


def test_another_environment_is_activated_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "my env" / "bin"
    here.mkdir(parents=True)
    for name in ("activate", "python", "spg-pipe"):
        (here / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(here / "python"))
    assert activation() == [f"source '{here}/activate'"]
    monkeypatch.chdir(tmp_path)
    assert activation() == ["source 'my env/bin/activate'"]
    monkeypatch.setenv("PATH", str(here))
    assert activation() == []


def test_files_of_others_are_listed_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    theirs = ("dvc.yaml", "params.yaml", "stages/score.py")
    for name in theirs:
        (tmp_path / name).write_text("lr: 0.1\n")
    message = one_message(spg("init", ".", cwd=tmp_path))
    assert "dvc.yaml, stages/score.py, params.yaml. Move them away" in message
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {Path(n).name for n in theirs}
    assert all((tmp_path / name).read_text() == "lr: 0.1\n" for name in theirs)


@pytest.mark.parametrize("where", ["root", "below", "in_dvc"])
def test_a_folder_of_a_repository_gets_the_dvc_that_it_needs(tmp_path: Path, where: str) -> None:
    must(run("git", "init", "-q", cwd=tmp_path))
    if where == "in_dvc":
        must(dvc("init", "-q", cwd=tmp_path))
        commit(tmp_path)
    folder = tmp_path if where == "root" else tmp_path / "inspection"
    result = json.loads(must(spg("init", folder, "--recipe", "demo", "--json", cwd=tmp_path)))
    assert result == {"folder": str(folder)}
    assert (folder / ".dvc" / "config").exists() is (where != "in_dvc")
    assert "demo_data@demo-visa" in must(dvc("stage", "list", "--name-only", cwd=folder)).split()
