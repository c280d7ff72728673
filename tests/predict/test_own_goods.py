"""`fit --normals`: a bank fitted once judges as one that is made on the fly."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TinyBackbone, additive_plan, files, write_folder

from spg_pipe.bank.fitted import FittedBank
from spg_pipe.cli.main import app
from spg_pipe.decision.calibration import Calibration
from spg_pipe.detector.make import make_detector
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.console import exit_code
from spg_pipe.predict.normals import white_with
from spg_pipe.recipe.params import BankParams

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tiny_store, tiny_sae, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector, images to judge and normal ones."""
    root = tmp_path_factory.mktemp("made")
    make_detector(tiny_store, additive_plan(tiny_sae))[0].save(root / "detector")
    write_folder(root / "parts", ("bolt",), good=2, masked=2, missing=0, seed=3)
    write_folder(root / "normals", ("bolt",), good=4, masked=0, missing=0, seed=7)
    shutil.rmtree(root / "parts" / "bolt" / "ground_truth")
    return root


@pytest.fixture
def run(made, monkeypatch, capsys) -> Command:
    """`spg-pipe` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())

    def command(*given: object) -> tuple[int, str, str]:
        code = exit_code(lambda: app([str(each) for each in given], standalone_mode=False))
        out, err = capsys.readouterr()
        return code, out, err

    return command


def fit(run: Command, made: Path, out: Path, *options: object) -> tuple[int, str, str]:
    return run("fit", made / "detector", "--normals", made / "normals", "--out", out, *options)


@pytest.mark.parametrize("shown", [[], ["--ignore", "mask.png"], ["--letterbox"]])
@pytest.mark.parametrize("options", [[], ["--bank", "alone"]])
def test_a_saved_bank_gives_the_same_table_to_the_byte(
    run, made, tmp_path, monkeypatch, options, shown
):
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((40, 48), np.uint8)
    mask[25:, :20] = 255
    Image.fromarray(mask).save("mask.png")
    code, _, err = fit(run, made, tmp_path / "bank", *shown)
    assert code == 0, err
    for normals, out in ((made / "normals", "live"), (tmp_path / "bank", "saved")):
        given = ("predict", made / "detector", made / "parts", "--out", tmp_path / out, *shown)
        code, said, err = run(*given, "--normals", normals, *options)
        assert code == 0, err
        assert "of 4 goods above" in said
    live, saved = ((tmp_path / name / "scores.csv").read_bytes() for name in ("live", "saved"))
    assert live == saved


def test_images_that_are_shown_otherwise_than_the_goods_are_refused(run, made, tmp_path):
    assert fit(run, made, tmp_path / "bank", "--crop")[0] == 0
    given = ("predict", made / "detector", made / "parts", "--out", tmp_path / "out")
    code, _, err = run(*given, "--normals", tmp_path / "bank")
    assert code == 1
    assert "were shown otherwise (crop, without masks of what is ignored)" in err
    assert run(*given, "--normals", tmp_path / "bank", "--crop")[0] == 0


def test_fit_says_what_the_goods_say(run, made, tmp_path):
    code, out, err = fit(run, made, tmp_path / "bank")
    assert code == 0, err
    record = FittedBank.load(tmp_path / "bank").record
    assert "\n    fused      alone  image\n" in out
    for good in record.goods:
        assert f"{good.fused:9.4f}  {good.alone:9.4f}  {good.path}" in out
    assert "few-shot: 4 normal images of the target" in out
    assert f"weight of the bank beside the guides {record.footing.weight:.4f}" in out
    given = f"predict {made / 'detector'} SOURCE --normals {tmp_path / 'bank'} --letterbox"
    assert given in fit(run, made, tmp_path / "bank", "--letterbox")[1]
    code, out, _ = fit(run, made, tmp_path / "bank", "--json")
    content = json.loads(out)
    assert content["fingerprint"] == record.fingerprint
    assert [good["path"] for good in content["goods"]] == [good.path for good in record.goods]


def test_settings_of_the_bank_are_those_it_was_fitted_with(run, made, tmp_path):
    code, _, err = fit(run, made, tmp_path / "bank", "--set", "bank.top_share=0.1")
    assert code == 0, err
    assert FittedBank.load(tmp_path / "bank").record.params == BankParams(top_share=0.1)
    given = ["predict", made / "detector", made / "parts", "--out", tmp_path / "out"]
    given += ["--normals", tmp_path / "bank"]
    assert run(*given)[0] == 0
    assert run(*given, "--set", "bank.top_share=0.1")[0] == 0
    code, _, err = run(*given, "--set", "bank.top_share=0.2")
    assert code == 1
    assert "leave out --set" in err


@pytest.mark.parametrize("bank", [False, True])
def test_a_folder_with_other_files_is_not_replaced(run, made, tmp_path, bank):
    (tmp_path / "out").mkdir()
    if bank:
        assert fit(run, made, tmp_path / "out")[0] == 0
        assert fit(run, made, tmp_path / "out")[0] == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = files(tmp_path)
    code, _, err = fit(run, made, tmp_path / "out")
    assert code == 1
    assert "holds other files than a bank" in err
    assert files(tmp_path) == before


def test_a_bank_is_no_folder_of_images(run, made, tmp_path):
    assert fit(run, made, tmp_path / "bank")[0] == 0
    given = ("fit", made / "detector", "--normals", tmp_path / "bank", "--out", tmp_path / "more")
    code, _, err = run(*given)
    assert code == 1
    assert "is a bank already" in err


def test_a_bank_alone_names_no_licence_of_the_detector(run, made, tmp_path):
    given = ("predict", made / "detector", made / "parts", "--out", tmp_path / "out")
    _, _, both = run(*given, "--normals", made / "normals")
    assert "CC0" in both
    assert "what this detector was made from" in both
    code, _, err = run(*given, "--normals", made / "normals", "--bank", "alone")
    assert code == 0
    assert "Licences of the backbone's weights:\n  tiny weights: CC0\n" in err
    assert "detector was made from" not in err


def test_white_of_a_bank_or_calibration_is_white_of_the_images():
    assert [white_with(None, peak) for peak in (None, 3000)] == [None, 4095]
    assert [white_with(4095, peak) for peak in (None, 1000, 4095)] == [4095, 4095, 4095]
    with pytest.raises(SpgError, match=r"White is 4095 in the normal images .* up to 4096"):
        white_with(4095, 4096)


def test_goods_calibrate_themselves_without_a_promise(run, made, tmp_path):
    """The threshold is the conformal one of their leave-one-out scores: of 4, for 20 %."""
    assert fit(run, made, tmp_path / "bank")[0] == 0
    file = tmp_path / "c.json"
    given = ("--normals", tmp_path / "bank", "--out", file, "--false-alarms", "0.2")
    code, said, err = run("calibrate", made / "detector", *given)
    assert code == 0, err
    assert "each left out once (jackknife). Nothing is promised" in said
    assert f"SOURCE --normals {tmp_path / 'bank'} --calibration {file}" in said
    limits = Calibration.load(file).limits("")
    assert limits.scores == tuple(FittedBank.load(tmp_path / "bank").record.scores(alone=False))
    assert limits.image.value == max(limits.scores)
    assert limits.pixel is None
    given = ("predict", made / "detector", made / "parts", "--out", tmp_path / "out")
    code, _, err = run(*given, "--normals", tmp_path / "bank", "--calibration", file)
    assert code == 0, err
    with (tmp_path / "out" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    above = [float(row["score"]) > limits.image.value for row in rows]
    assert [row["decision"] == "anomalous" for row in rows] == above


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--normals", "normals", "--method", "tolerance"],
        ["--normals", "normals", "--by-folder"],
        ["--normals", "one"],
    ],
)
def test_nothing_to_calibrate_on_is_told(run, made, tmp_path, monkeypatch, options):
    monkeypatch.chdir(made)
    if not (made / "one").exists():
        write_folder(made / "one", ("bolt",), good=1, masked=0, missing=0)
    code, _, err = run("calibrate", "detector", *options, "--out", tmp_path / "c.json")
    assert code == 1
    assert "Which images? Name normal ones (GOOD...)" in err
    assert not (tmp_path / "c.json").exists()
