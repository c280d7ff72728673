"""`fit`: from labelled images to a detector in one command, and on from there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts import save, texture
from tiny import files, write_folder

from pipeline.test_parts import command
from spg_pipe.backbones.packaged import PackagedFile
from spg_pipe.pipeline import fit as module
from spg_pipe.pipeline import training
from spg_pipe.recipe.params import parse_params
from spg_pipe.recipe.reader import parse_yaml

SMALL = ("--backbone", "efficientnet-lite0", "--image-size", "64")
SAE = "sae: {dict_size: 16, k: 4, tokens: 2400, batch_tokens: 8}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small dictionary."""
    text = module._RECIPE.replace("sae: {{dict_size: 2048, tokens: 400000}}", "{sae}")
    assert "{sae}" in text
    text = text.replace("{sae}", SAE.replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr(module, "_RECIPE", text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled images and their fit."""
    return tmp_path_factory.mktemp("fit")


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch, capsys) -> Path:
    """A copy of it to work in; it is made by the first test that asks."""
    if not (made / "my parts").exists():
        write_folder(made / "my parts", ("bolt",), good=6, masked=5)
        monkeypatch.chdir(made)
        code, out, err = command(capsys, "fit", "my parts", *SMALL, "--json")
        assert code == 0, err
        (made / "said.json").write_text(out)
    folder = shutil.copytree(made, tmp_path / "copy")
    recipe = folder / "fit_my-parts" / "params.yaml"  # which names the images' absolute place
    recipe.write_text(recipe.read_text().replace(str(made), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def test_the_folder_is_a_recipe_with_its_artefacts_and_single_commands_go_on(here, capsys):
    content = json.loads((here / "said.json").read_text())
    detector = Path(content["detector"])
    assert detector == Path("fit_my-parts/artifacts/detectors/my-parts/") / (
        "my-parts-efficientnet-lite0-64-s111"
    )
    before = files(detector)
    code, _, err = command(capsys, "predict", str(detector), "my parts", "--quiet")
    assert code == 0, err
    assert (here / "predictions" / "scores.csv").is_file()
    shutil.rmtree(detector)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here / "fit_my-parts")
        code, _, err = command(capsys, "train-guides", "--quiet")
    assert code == 0, err
    assert files(detector) == before


def test_the_table_names_what_was_judged_wrongly(here, capsys):
    held = json.loads((here / "said.json").read_text())["held_out"]
    table = pd.read_csv(here / "fit_my-parts" / "held-out.csv", keep_default_na=False)
    written = json.loads((here / "fit_my-parts" / "held-out.json").read_text())
    assert written == held | {"seal": written["seal"]}
    assert (held["normal"], held["anomalous"], held["not_judged"]) == (6, 6, 0)
    scores = table["score"].astype(float)
    assert ((scores > 0) == (table["decision"] == "anomalous")).all()
    false_alarms = (table["label"] == "normal") & (scores > 0)
    missed = (table["label"] == "anomalous") & (scores <= 0)
    assert ((table["wrong"] == "false alarm") == false_alarms).all()
    assert ((table["wrong"] == "missed") == missed).all()
    assert (held["false_alarms"], held["missed"]) == (false_alarms.sum(), missed.sum())
    code, out, err = command(capsys, "fit", "my parts", *SMALL)
    assert code == 0, err
    said = " ".join(out.split())
    assert (
        f"image AUROC {held['image_auroc']:.3f}, pixel AP {held['pixel_ap']:.3f} (my-parts," in said
    )
    assert "efficientnet-lite0@64, seed 111; protocols default and exact" in said
    for path in table["path"][table["wrong"] != ""]:
        assert path in out
    assert "spg-pipe predict fit_my-parts/artifacts/detectors/" in said


def test_what_is_there_is_kept_and_what_has_changed_is_made_again(here, capsys, monkeypatch):
    made: list[str] = []
    for name in ("train_sae", "train_guides"):
        true = getattr(training, name)
        monkeypatch.setattr(training, name, lambda *a, _n=name, _t=true: made.append(_n) or _t(*a))
    again = ("fit", "my parts", *SMALL, "--quiet")
    before = files(here / "fit_my-parts")
    assert command(capsys, *again)[0] == 0
    assert made == []
    assert files(here / "fit_my-parts") == before
    shutil.rmtree(next((here / "fit_my-parts/artifacts/sae/my-parts").iterdir()))
    assert command(capsys, *again)[0] == 0
    assert made == ["train_sae"]
    assert files(here / "fit_my-parts") == before
    save(texture((40, 48), np.random.default_rng(9)), here / "my parts/bolt/good/new.png")
    code, _, err = command(capsys, *again)
    assert code == 0, err
    assert made == ["train_sae", "train_sae", "train_guides"]
    table = pd.read_csv(here / "fit_my-parts" / "held-out.csv")
    assert "bolt/good/new.png" in set(table["path"])


@pytest.mark.parametrize(
    ("images", "found", "advice"),
    [
        (
            {"masked": 0, "missing": 0},
            "4 normal images, 0 defects",
            "`spg-pipe synthesise parts parts-painted`.*`spg-pipe fit parts-painted`.*--normals",
        ),
        ({"masked": 0, "missing": 2}, "2 defects (0 with a mask)", "Give some defects masks, as "),
        ({"good": 0, "missing": 0}, "0 normal images, 0 defects (0", "into parts/good"),
    ],
)
def test_labels_that_do_not_suffice_are_named_with_a_way_on(
    tmp_path, monkeypatch, capsys, images, found, advice
):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("all"), ("parts",), **images)
    shutil.move("all/parts", "parts")
    shutil.rmtree("parts/ground_truth", ignore_errors=True)
    code, _, err = command(capsys, "fit", "parts", *SMALL)
    said = " ".join(err.split())
    assert code == 1
    assert found in said
    assert re.search(advice, said)
    assert not Path("fit_parts").exists()


def test_painted_sets_are_taken_for_what_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("parts"), ("bolt",), masked=0, missing=0)
    assert command(capsys, "synthesise", "parts", "painted", "--quiet")[0] == 0
    code, out, err = command(capsys, "fit", "painted", *SMALL)
    assert code == 0, err
    assert "synthetic defects on 4 normal images" in out
    assert 'layout: "synthetic"' in Path("fit_painted/params.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("nowhere",), "nowhere is no folder"),
        (("my parts", "--out", "my parts/fit"), "lies among the images"),
        (("my parts", "--seed", "3"), "fit_my-parts holds another recipe"),
        (("my parts", "--out", "my parts", "--layout", "mvtec"), "lies among the images"),
        (("my parts", "--out", "."), "holds other files"),
        (("my parts", "--layout", "coco9"), "datasets.0.layout: Input should be"),
        (("my parts", "--tiles", "448"), "--tiles is of a bank"),
        (("my parts", "--set", "bank.weight=3"), "--set is of a bank"),
        (("fit_my-parts", "--normals", "my parts", "--seed", "0"), "--seed is of a detector"),
        (("fit_my-parts", "--normals", "my parts"), "Add --out FOLDER"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(here, capsys, arguments, fault):
    before = files(here)
    code, _, err = command(capsys, "fit", *arguments)
    assert (code, fault in " ".join(err.split())) == (1, True), err
    assert files(here) == before


@pytest.mark.parametrize("name", ["2024", "1e3", "null", "0x1f", "2024-01-02", "on"])
def test_a_folder_may_be_called_as_yaml_writes_other_things(tmp_path, name):
    (tmp_path / name).mkdir()
    text = module.Labelled(tmp_path / name, backbone="efficientnet-lite0").recipe()
    assert parse_params(parse_yaml(text, "fit"), "The recipe").name == name


def test_a_recipe_in_another_encoding_is_another_recipe(here, capsys):
    (here / "fit_my-parts" / "params.yaml").write_bytes(b"name: caf\xe9")
    code, _, err = command(capsys, "fit", "my parts", *SMALL)
    assert (code, "holds another recipe" in err) == (1, True)


def test_calibrate_leaves_out_what_the_detector_was_made_from(here, capsys):
    detector = json.loads((here / "said.json").read_text())["detector"]
    write_folder(here / "new", ("bolt",), good=19, masked=0, missing=0, seed=7)
    shutil.copy(here / "my parts/bolt/good/01.png", here / "new/bolt/good/known.png")
    code, _, err = command(capsys, "calibrate", detector, "new/bolt/good")
    assert code == 0, err
    assert "1 image that the detector was made from, so that it knows them: known.png" in err
    code, _, err = command(capsys, "calibrate", detector, "my parts/bolt/good", "--out", "c.json")
    assert code == 1
    assert "No image is left to calibrate on. Left out: 6 images that the detector" in err


def test_the_vit_is_taken_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(PackagedFile, "find", lambda self: Path(self.path))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name)
    assert module.default_backbone() == "dinov2-vits14-imgfocus"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module.default_backbone() == "efficientnet-lite0"
    monkeypatch.setattr(PackagedFile, "find", lambda self: None)
    assert module.default_backbone() == "efficientnet-lite0"
