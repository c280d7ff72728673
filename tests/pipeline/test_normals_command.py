"""`score --normals`: places of their own, labels in metrics, refusals before any work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from datetime import date
from pathlib import Path

import pytest
import yaml
from layouts import write_mvtec

from pipeline.test_parts import RECIPE, command
from spg_pipe.cli.options import Options
from spg_pipe.decision.calibration import Calibration, Judging, by_hand
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import SpgError
from spg_pipe.pipeline import features, targets, training
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import BankParams

SEES = "few-shot: 2 normal images of each category of the target"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a detector, both stores and zero-shot scores and metrics."""
    folder = tmp_path_factory.mktemp("few-shot")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_mvtec(Path("left"))
        write_mvtec(Path("right"), seed=1)
        published = {"aux": "left", "target": "right", "image_auroc": 91.4, "source": "x"}
        Path("params.yaml").write_text(yaml.safe_dump(RECIPE | {"published": [published]}))
        run = run_here()
        for name in ("left", "right"):
            features.extract(run, run.params.dataset(name))
        training.train_sae(run, "left", 111)
        training.train_guides(run, "left", 111)
        targets.score(run, "right")
        targets.evaluate(run, "right")
    return folder


def run_here() -> RecipeRun:
    return Options(device="cpu", quiet=True).run()


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> RecipeRun:
    monkeypatch.chdir(made)
    return run_here()


def scored(capsys: pytest.CaptureFixture[str], *arguments: str) -> Path:
    code, out, err = command(capsys, "score", *arguments, "--json")
    assert code == 0, err
    (place,) = json.loads(out)["scores"]
    return Path(place)


def test_few_shot_scores_and_metrics_have_places_and_labels_of_their_own(here, capsys):
    zero_shot = targets.score(here, "right")[0]
    before = Scores.load(zero_shot).record.fingerprint
    place = scored(capsys, "--split", "right", "--normals", "right/train")
    assert place.parent == Path("artifacts/few-shot/mini")
    assert Scores.load(place).record.supervision == f"labelled auxiliary set; {SEES}"
    assert Scores.load(zero_shot).record.fingerprint == before
    code, out, _ = command(capsys, "evaluate", "--split", "right", "--scores", str(place))
    assert code == 0
    text = " ".join(out.split())
    assert f"spg-plus + k-NN bank, labelled auxiliary set; {SEES}, method protocol" in text
    assert "0.914" not in text  # the published figure is zero-shot
    code, out, _ = command(capsys, "evaluate", "--split", "right", "--scores", str(place), "--json")
    ((metrics, rows),) = json.loads(out).items()
    assert Path(metrics).parent == place.parent
    assert all(row["supervision"].endswith(SEES) for row in rows)
    own = targets.evaluate(here, "right")  # of the recipe: still zero-shot
    assert targets.read_metrics(own[0]).context.supervision == "labelled auxiliary set"
    assert "0.914" in command(capsys, "evaluate", "--split", "right")[1]


def test_the_same_normals_by_name_folder_or_store_and_other_settings_apart(here, capsys):
    first = scored(capsys, "--split", "right", "--normals", "right/train")
    store = next(Path("artifacts/features").glob("right-train-*.zarr"))
    assert scored(capsys, "--split", "right", "--normals", str(store)) == first
    other = scored(capsys, "--split", "right", "--normals", str(store), "--set", "bank.weight=3")
    assert other != first
    share = [Scores.load(place).table["share_bank"].to_numpy() for place in (first, other)]
    assert share[1] == pytest.approx(3 / BankParams().weight * share[0])


def test_a_bank_alone_needs_no_detector(here, capsys, tmp_path):
    shutil.move("artifacts/detectors", tmp_path)
    try:
        place = scored(capsys, "--split", "right", "--normals", "right/train", "--bank", "alone")
    finally:
        shutil.move(tmp_path / "detectors", "artifacts")
    assert Scores.load(place).record.supervision == SEES
    assert place.name.startswith("right-efficientnet-lite0-64-")
    code, out, _ = command(capsys, "evaluate", "--split", "right", "--scores", str(place))
    assert code == 0
    said = f"k-NN bank, {SEES}, method protocol none"
    assert "".join(said.split()) in "".join(out.split())  # lines may break at any hyphen


def test_scored_images_among_the_normals_are_reported_each_time(here, capsys, tmp_path):
    folder = tmp_path / "seen"
    for category in ("bottle", "screw"):
        shutil.copytree(f"right/{category}/test/good", folder / category / "good")
    code, _, err = command(capsys, "score", "--split", "right", "--normals", str(folder))
    assert code == 0, err
    note = "Note: 4 of the 8 images are among the normal ones (bottle/test/good/000.png, "
    assert note in err
    place = next(p for p in Path("artifacts/few-shot/mini").iterdir() if str(p) in err)
    assert note in command(capsys, "evaluate", "--split", "right", "--scores", str(place))[2]


def test_copies_among_the_normals_are_said_and_not_counted(here, capsys, tmp_path):
    for category in ("bottle", "screw"):
        good = tmp_path / "seen" / category / "good"
        shutil.copytree(f"right/{category}/train/good", good)
        shutil.copy(good / "000.png", good / "copy.png")
    code, _, err = command(capsys, "score", "--split", "right", "--normals", str(tmp_path / "seen"))
    assert code == 0, err
    assert "Note: 2 of the 6 normal images are copies of others, left out." in err
    assert SEES in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--normals", "right/train"], "--normals are normal images of one target"),
        (["--split", "right", "--bank", "alone"], "--bank alone says what normal images"),
        (["--split", "right", "--normals", "nowhere"], "--normals nowhere: there is no such"),
        (["--split", "right", "--normals", "right"], "has 4 anomalous images"),
        (
            ["--split", "right", "--normals", "right/train", "--bank", "alone", "--aux", "left"],
            "--bank alone uses no detector",
        ),
        (
            ["--split", "right", "--normals", "right/train", "--set", "score.rule=published"],
            "There is no|does not exist|score.rule is published",
        ),
        (
            ["--split", "right", "--normals", "right/train", "--set", "bank.neighbours=1000"],
            "Lower bank.neighbours",
        ),
    ],
)
def test_what_makes_no_few_shot_scores_is_refused_with_nothing_written(
    here, capsys, options, message
):
    before = sorted(Path("artifacts").glob("few-shot/*/*"))
    code, _, err = command(capsys, "score", *options)
    assert code == 1
    assert re.search(message, " ".join(err.split())), err
    assert sorted(Path("artifacts").glob("few-shot/*/*")) == before


@pytest.mark.parametrize(
    ("copied", "message"),
    [
        ({"bottle": "test/crack", "screw": "train/good"}, "normals has 1 anomalous images"),
        ({"nut": "train/good", "screw": "train/good"}, "There are no normal images of bottle; the"),
    ],
)
def test_what_is_no_normal_image_is_refused_before_it_has_tokens(
    here, capsys, tmp_path, copied, message
):
    for category, part in copied.items():
        kind = Path(part).name
        source = f"right/{'bottle' if category == 'nut' else category}/{part}"
        shutil.copytree(source, tmp_path / "normals" / category / kind)
        shutil.copytree(
            "right/screw/train/good", tmp_path / "normals" / category / "good", dirs_exist_ok=True
        )
    before = sorted(Path("artifacts/features").iterdir())
    options = ("--split", "right", "--normals", str(tmp_path / "normals"))
    code, _, err = command(capsys, "score", *options)
    assert (code, sorted(Path("artifacts/features").iterdir())) == (1, before)
    assert message in " ".join(err.split())


def test_tokens_of_another_backbone_than_the_targets_are_not_computed_first(
    here, monkeypatch, tmp_path
):
    store = features.extract(here, here.params.dataset("right"), out=tmp_path / "right.zarr")
    size = here.params.backbone.model_copy(update={"image_size": 96})
    other = here.with_params(here.params.model_copy(update={"backbone": size}))
    monkeypatch.setattr(features, "extract", lambda *_, **__: pytest.fail("extracted"))
    with pytest.raises(
        SpgError, match=r"of another backbone than the recipe: .*image_size is \d+, not 96"
    ):
        targets.score(other, "right", store=store, normals="right/train", alone=True)


def test_metrics_that_cannot_be_written_are_not_computed_first(here, monkeypatch):
    def refused(place: Path) -> None:
        raise PermissionError(13, "no", str(place.parent))

    targets.score(here, "right")
    monkeypatch.setattr(targets, "require_writable", refused)
    monkeypatch.setattr(targets, "evaluate_scores", lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(PermissionError, match="artifacts/metrics/mini"):
        targets.evaluate(here, "right")


def test_the_command_that_judges_scores_works_with_the_recipe_that_was_named(
    here, capsys, tmp_path
):
    recipe = tmp_path / "my recipe.yaml"
    shutil.copy("params.yaml", recipe)
    options = ["--params", str(recipe), "--set", "bank.weight=3"]
    code, _, err = command(
        capsys, "score", "--split", "right", "--normals", "right/train", *options
    )
    assert code == 0, err
    advice = re.search(r"Judge them with `spg-pipe (.*)`", err)
    assert advice is not None
    words = shlex.split(advice[1])
    assert words[-4:] == options
    Path("params.yaml").rename("hidden.yaml")
    try:
        assert command(capsys, *words)[0] == 0
    finally:
        Path("hidden.yaml").rename("params.yaml")


def test_a_calibration_does_not_hold_for_few_shot_scores_of_stores(here, capsys, tmp_path):
    place = scored(capsys, "--split", "right", "--normals", "right/train")
    judging = Judging(detector=Detector.load(here.paths.detector("left", 111)).fingerprint)
    file, options = tmp_path / "c.json", ("--split", "right", "--scores", str(place))
    Calibration(
        judging=judging,
        method="manual",
        false_alarms=None,
        confidence=None,
        recall=None,
        by_folder=False,
        groups={"": by_hand(0.0, 0.5)},
        notes=(),
        made=date(2026, 1, 1),
        valid_until=None,
        versions={},
    ).sealed().save(file)
    code, _, err = command(capsys, "evaluate", *options, "--calibration", str(file))
    assert code == 1
    assert "are few-shot, of banks made from a feature store" in err
