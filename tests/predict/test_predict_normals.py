"""`predict --normals`: a bank of a person's own normal images, made on the fly."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TinyBackbone, additive_plan, files, write_folder

from spg_pipe.backbones.tiling import tiled
from spg_pipe.bank.few_shot import banks_of, score_few_shot
from spg_pipe.cli.main import app
from spg_pipe.decision.maps import HALFWAY
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.images.preprocess import preprocess
from spg_pipe.images.reading import read_image
from spg_pipe.pipeline.console import exit_code
from spg_pipe.predict.normals import NormalFolder, fit_normals, read_normals
from spg_pipe.predict.predictor import Predictor
from spg_pipe.predict.view import Viewing
from spg_pipe.recipe.params import BankParams
from spg_pipe.sae.run import SaeRun
from spg_pipe.store.reader import FeatureStore

SEES = "few-shot: 3 normal images of the target"
BOTH = f"labelled auxiliary set; {SEES}"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def detector(
    tiny_store: FeatureStore, tiny_sae: SaeRun, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("detectors") / "d"
    make_detector(tiny_store, additive_plan(tiny_sae))[0].save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two good and two defective parts, and three other good ones to compare with."""
    write_folder(tmp_path / "parts", ("bolt",), good=2, masked=2, missing=0, seed=3)
    write_folder(tmp_path / "normals", ("bolt",), good=3, masked=0, missing=0, seed=7)
    shutil.rmtree(tmp_path / "parts" / "bolt" / "ground_truth")
    return tmp_path / "parts"


@pytest.fixture
def predict(
    detector: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """`spg-pipe predict` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())

    def command(
        *options: str, normals: Path | None = tmp_path / "normals", detector: Path = detector
    ) -> tuple[int, str, str]:
        given = ["predict", str(detector), str(images), "--out", str(tmp_path / "out"), *options]
        given += ["--normals", str(normals)] if normals else []
        code = exit_code(lambda: app(given, standalone_mode=False))
        out, err = capsys.readouterr()
        return code, out, err

    return command


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("alone", "sides"), [(False, []), (True, []), (False, [64])])
def test_the_scores_are_those_of_score_on_the_same_images(
    predict, detector, tmp_path, images, alone, sides
):
    from tiny import extracted, manifest_of

    options = ["--bank", "alone"] if alone else ["--set", "bank.weight=0.5"]
    options += ["--tiles", "64"] if sides else []
    backbone = tiled(TinyBackbone(), sides) if sides else TinyBackbone()
    code, _, err = predict(*options)
    assert code == 0, err
    target, normals = (
        extracted(
            manifest_of(tmp_path / name),
            tmp_path / f"{name}.zarr",
            dtype="float32",
            backbone=backbone,
        )
        for name in ("parts", "normals")
    )
    banks = banks_of([normals], target, BankParams(weight=0.5))
    used = None if alone else Detector.load(detector)
    expected = score_few_shot(used, banks, target, tmp_path / "s").table.set_index("path")
    found = rows_of(tmp_path / "out")
    assert len(found) == 4
    for row in found:
        assert row["supervision"] == (SEES if alone else BOTH)
        for column in ("score", "share_bank"):
            assert float(row[column]) == pytest.approx(expected[column][row["path"]], abs=1e-4)


def test_everything_that_is_said_of_it_says_few_shot(predict: Command, tmp_path: Path) -> None:
    code, out, _ = predict()
    assert code == 0
    said = r"image score additive \+ \S+ · k-NN bank, tiny@32 layers 1\+2 \(post-norm\), seed 1"
    assert re.search(said, out)
    assert BOTH in out
    code, out, _ = predict("--bank", "alone")
    assert f"image score k-NN bank alone, tiny@32 layers 1+2 (post-norm); {SEES}" in out
    assert not {"seed", "detector"} & set(out.split())
    code, out, _ = predict("--bank", "alone", "--json")
    assert {json.loads(line)["supervision"] for line in out.splitlines()} == {SEES}
    code, out, _ = predict("--json")
    assert {json.loads(line)["supervision"] for line in out.splitlines()} == {BOTH}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["facts"].endswith(f"; {BOTH}")
    assert len(record["identity"]["bank"]) == 64
    code, out, _ = predict(normals=None)  # in the same place: an earlier result, few-shot or not
    assert code == 0
    assert "few-shot" not in out
    assert "supervision" not in rows_of(tmp_path / "out")[0]


@pytest.mark.parametrize("alone", [False, True])
def test_heat_maps_begin_to_shine_above_what_normal_images_have(detector, images, alone):
    given = NormalFolder(images.parent / "normals", BankParams(weight=0.5), alone)
    predictor = Predictor(Detector.load(detector), TinyBackbone())
    bank = fit_normals(predictor, read_normals(given, predictor.detector), given.params, Viewing())
    predictor = replace(predictor, bank=bank, alone=alone)
    shown = np.array(predictor.shown)
    low, high = HALFWAY * (shown - 0.5) / (1 - shown)  # of those above ½
    top = max(bank.memory.map_top, 1.0) + (0 if alone else 1)
    assert (low, high) == pytest.approx((top, 3 * top), abs=1e-3)


def test_images_that_are_normals_themselves_are_named(predict, images, tmp_path):
    code, _, err = predict(normals=images / "bolt" / "good")
    assert code == 0
    assert "Note: 2 of the 4 images are among the normal ones" in err
    assert "bolt/good/00.png, bolt/good/01.png" in err
    marked = {row["path"]: row["among_normals"] for row in rows_of(tmp_path / "out")}
    assert sorted(path for path, known in marked.items() if known == "True") == [
        "bolt/good/00.png",
        "bolt/good/01.png",
    ]


@pytest.mark.parametrize(("sides", "expected"), [([], [3]), ([48], [1, 2, 3])])
def test_images_in_many_tiles_are_read_one_by_one(detector, images, sides, expected):
    backbone, done = TinyBackbone(), list[int]()
    predictor = Predictor(Detector.load(detector), tiled(backbone, sides) if sides else backbone)
    given = NormalFolder(images.parent / "normals", BankParams())
    normals = read_normals(given, predictor.detector)
    fit_normals(
        predictor, normals, given.params, Viewing(), progress=lambda now, _all: done.append(now)
    )
    assert done == expected


def test_copies_among_the_normals_are_said_and_not_counted(predict, tmp_path):
    good = tmp_path / "normals" / "bolt" / "good"
    code, _, err = predict()
    assert code == 0
    assert "copies" not in err
    without = rows_of(tmp_path / "out")
    shutil.copy(good / "00.png", good / "zz.png")
    code, out, err = predict()
    assert code == 0
    assert "Note: 1 of the 4 normal images are copies of others, left out." in err
    assert SEES in out
    assert rows_of(tmp_path / "out") == without


def test_what_is_doubtful_about_the_normals_is_said(predict, tmp_path):
    folder = (tmp_path / "normals" / "bolt" / "good").rename(tmp_path / "normals" / "NG")
    for image in sorted(folder.glob("*.png")):
        Image.open(image).convert("1").point(lambda _: 0).save(folder / f"{image.stem}_mask.png")
    code, _, err = predict()
    assert code == 0
    assert "3 masks by the suffix _mask" in err
    assert "(there are: NG)" in err


def spoil(folder: Path, how: str) -> None:
    """Make a folder of three normal images one that is no bank."""
    good = folder / "bolt" / "good"
    if how == "missing":
        shutil.rmtree(folder)
    elif how == "truncated":
        (good / "01.png").write_bytes((good / "01.png").read_bytes()[:-100])
    elif how == "defects":
        write_folder(folder, ("bolt",), good=3, masked=1, missing=0)
    elif how == "no label":
        shutil.copytree(good, folder / "bolt" / "unsorted")
    elif how == "two products":
        shutil.copytree(folder / "bolt", folder / "nut")


def test_an_unusable_good_is_left_out_and_named(predict, tmp_path):
    spoil(tmp_path / "normals", "truncated")
    code, _, err = predict()
    assert code == 0
    assert "--normals: left out, unusable: bolt/good/01.png (" in err
    assert "few-shot: 2 normal images" in err + (tmp_path / "out" / "run.json").read_text()


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("missing", [], "is no folder. Give a folder with a few normal images"),
        ("defects", [], "holds 1 image of a defect (the first: bolt/dent/00.png)"),
        ("defects", [], "normals/bolt/good."),
        ("no label", [], "3 images without a label (the first: bolt/unsorted/00.png)"),
        ("two products", [], "the categories bolt, nut"),
        ("", ["--set", "sae.k=3"], "a detector keeps its own settings"),
        ("", ["--set", "bank.weigth=3"], "did you mean 'weight'?"),
        ("", ["--set", "bank.neighbours=0"], "bank.neighbours"),
    ],
)
def test_what_makes_no_bank_is_refused_with_nothing_written(
    predict, tmp_path, how, options, message
):
    spoil(tmp_path / "normals", how)
    before = files(tmp_path)
    code, _, err = predict(*options)
    assert code == 1
    assert message in err
    assert files(tmp_path) == before


@pytest.mark.parametrize("copied", [False, True])
def test_a_single_normal_image_makes_a_bank(predict: Command, tmp_path: Path, copied: bool) -> None:
    good = tmp_path / "normals" / "bolt" / "good"
    for name in ("01.png", "02.png"):
        (good / name).unlink()
        if copied:
            shutil.copy(good / "00.png", good / name)
    code, out, err = predict()
    assert code == 0, err
    assert "few-shot: 1 normal image of the target" in out


@pytest.mark.parametrize("options", [["--bank", "fused"], ["--set", "bank.weight=2"]])
def test_options_of_a_bank_need_normal_images(predict: Command, options: list[str]) -> None:
    code, _, err = predict(*options, normals=None)
    assert code == 1
    assert "--normals" in err


def test_a_detector_of_the_published_rule_takes_a_bank_alone(predict, tiny_detector, tmp_path):
    published = tmp_path / "published"
    tiny_detector.save(published)
    code, _, err = predict(detector=published)
    assert code == 1
    assert "the score.rule is published" in err
    assert predict("--bank", "alone", detector=published)[0] == 0
    rows = rows_of(tmp_path / "out")
    assert [row["score"] for row in rows] == [row["share_bank"] for row in rows]


def to_12_bits(path: Path) -> None:
    """Make an image grey, of 12 bits in a file of 16 that does not say so."""
    with Image.open(path) as image:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16).save(path)


def test_images_and_normals_of_12_bits_are_one_set_and_read_as_extract_reads_them(
    predict: Command, images: Path, tmp_path: Path
) -> None:
    from tiny import extracted, manifest_of

    for path in sorted((tmp_path / "normals").rglob("*.png")) + sorted(images.rglob("*.png")):
        to_12_bits(path)
    code, _, err = predict("--json")
    assert code == 0, err
    (note,) = json.loads((tmp_path / "out" / "run.json").read_text())["notes"]
    assert note.startswith("7 16-bit images not saying which value is white")
    assert "it is 4095, of 12 bits" in note
    manifest = manifest_of(images)
    store = extracted(manifest, tmp_path / "parts.zarr", dtype="float32")
    assert (manifest.white, store.spec.white) == (4095, 4095)
    pixels = [read_image(manifest.image_path(row), exif=True, white=4095) for row in range(4)]
    batch = np.stack([preprocess(image, TinyBackbone().spec.preprocess) for image in pixels])
    tokens = TinyBackbone()(torch.from_numpy(batch))["1"].patches
    np.testing.assert_allclose(store.array("mean_1"), tokens.numpy().mean(axis=(0, 1)), rtol=1e-4)
