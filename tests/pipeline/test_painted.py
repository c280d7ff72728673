"""Detectors of painted auxiliary sets say what they saw, and whether it was the target itself."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layouts import scanned, synthesised, write_mvtec
from tiny import METHOD, SAE, TinyBackbone, additive_plan, extracted

from pipeline.test_parts import RECIPE
from spg_pipe.bank.few_shot import banks_of, score_few_shot
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.make import make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.record import Painted
from spg_pipe.detector.scores import score_store
from spg_pipe.errors import SpgError
from spg_pipe.guides.contrast import FOLDS, class_sums
from spg_pipe.guides.kinds import ContrastGuides
from spg_pipe.pipeline import features, synthetic, targets
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.own_images import note_own_images
from spg_pipe.pipeline.predict import Ask, predict_images
from spg_pipe.pipeline.run import RecipeRun, targets_of
from spg_pipe.predict.normals import NormalFolder
from spg_pipe.recipe.params import (
    BankParams,
    MetricParams,
    parse_params,
)
from spg_pipe.report.tables import caption
from spg_pipe.sae.run import SaeRun
from spg_pipe.sae.train import train_sae
from spg_pipe.store.reader import FeatureStore
from spg_pipe.study.methods import entries

SEES = "synthetic defects on 12 normal images"
PAINTED = {"root": "syn/a", "source": "parts", "layout": "mvtec"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts, of which the training images are painted (`syn/a`), and others."""
    root = tmp_path_factory.mktemp("painted")
    write_mvtec(root / "parts", train=6, good=3)
    write_mvtec(root / "other", ("nut",), seed=1)
    source = scanned("parts", "mvtec", root / "parts", split="train")
    synthesised(source, root / "syn" / "a", per_image=2)
    return root


@pytest.fixture(scope="module")
def store(folder: Path) -> FeatureStore:
    return extracted(scanned("painted", "synthetic", folder / "syn" / "a"), folder / "aux.zarr")


@pytest.fixture(scope="module")
def sae(store: FeatureStore) -> SaeRun:
    return train_sae(store, SAE, METHOD, seed=1)[0]


@pytest.fixture(scope="module")
def detector(store: FeatureStore, sae: SaeRun) -> Detector:
    return make_detector(store, additive_plan(sae, guides=ContrastGuides(atoms=4)))[0]


@pytest.fixture
def target(folder: Path, tmp_path: Path) -> Callable[..., FeatureStore]:
    def target(root: str, split: str = "test") -> FeatureStore:
        manifest = scanned("target", "mvtec", folder / root, split=split)
        return extracted(manifest, tmp_path / f"{root}-{split}.zarr")

    return target


@pytest.fixture
def at_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def run_of(**changes: Any) -> RecipeRun:
    """A recipe of the sets in the current folder."""
    rows = [
        {"name": "painted", "layout": "synthetic", "root": "syn", "sets": ["a"]},
        {"name": "target", "layout": "mvtec", "root": "parts"},
        {"name": "other", "layout": "mvtec", "root": "other"},
    ]
    recipe = RECIPE | {
        "synthetic_sets": {"painted": PAINTED},
        "datasets": rows,
        "auxiliaries": ["painted"],
        "directions": [{"aux": "painted", "target": "other"}],
    }
    return RecipeRun(parse_params(recipe | changes, "test"), Console(1), "cpu")


def test_a_detector_says_on_how_many_images_its_defects_were_painted(detector, tiny_detector):
    assert detector.record.auxiliary.synthetic == Painted(
        normal_images=12, categories=("bottle", "screw")
    )
    assert detector.supervision == SEES
    assert len(detector.record.painted_on) == 12
    assert tiny_detector.supervision == "labelled auxiliary set"
    assert tiny_detector.record.auxiliary.synthetic is None
    assert not tiny_detector.record.painted_on


def test_scores_metrics_tables_and_few_shot_say_so(detector, target, tmp_path):
    judged = target("other")
    scores = score_store(detector, judged, tmp_path / "scores")
    assert scores.record.supervision == SEES
    evaluation = evaluate_scores(scores, judged, MetricParams())
    assert evaluation.table.context.supervision == SEES
    assert evaluation.provenance.supervision == SEES
    assert SEES in caption(evaluation.table)
    banks = banks_of([target("other", "train")], judged, BankParams())
    scores = score_few_shot(detector, banks, judged, tmp_path / "few_shot")
    assert scores.record.supervision == f"{SEES}; few-shot: 2 normal images of the target"


def test_baselines_and_compare_say_so(at_root, store):
    run = run_of()
    first = list(islice(entries(run, {"painted": store, "other": store}, 2), 4))
    assert [one.supervision for one in first] == [SEES] * 4


@pytest.mark.parametrize(
    ("root", "split", "note"),
    [
        ("parts", "train", "of which 12 were taken from target itself; this is not zero-shot"),
        ("parts", "test", "painted on normal images of bottle, screw from parts"),
        ("other", "test", ""),
    ],
)
def test_a_target_that_was_painted_on_is_told(at_root, detector, target, capsys, root, split, note):
    judged, run = target(root, split), run_of()
    dataset = run.params.dataset("other" if root == "other" else "target")
    note_own_images(run, detector, dataset, judged)
    said = " ".join(capsys.readouterr().err.split())
    assert note in said
    assert bool(said) == bool(note)
    # Other categories of the same folder are other products.
    painted = Painted(normal_images=1, categories=("zipper",))
    auxiliary = detector.record.auxiliary.model_copy(update={"synthetic": painted})
    record = detector.record.model_copy(update={"painted_on": ("0",), "auxiliary": auxiliary})
    note_own_images(run, replace(detector, record=record), dataset, judged)
    assert capsys.readouterr().err == ""


def test_score_notes_the_detectors_own_images(at_root, detector, target, tmp_path, capsys):
    place, normals = Path(target("parts").path), str(target("parts", "train").path)
    detector.save(tmp_path / "detector")
    run = run_of(artifacts=str(tmp_path / "artifacts"))
    options: dict[str, Any] = {"detector": tmp_path / "detector", "store": place}
    targets.score(run, "target", **options)
    assert "this is not zero-shot" in capsys.readouterr().err
    targets.score(run, "target", normals=normals, **options)
    assert "this is not zero-shot" in capsys.readouterr().err
    targets.score(run, "target", normals=normals, alone=True, store=place)
    assert "this is not zero-shot" not in capsys.readouterr().err


@pytest.mark.parametrize(("own", "root"), [(True, "parts"), (False, "other")])
def test_predict_says_what_was_painted_and_on_which(
    folder, detector, tmp_path, monkeypatch, capsys, own, root
):
    monkeypatch.setattr("spg_pipe.backbones.load_backbone", lambda *_, **__: TinyBackbone())
    detector.save(tmp_path / "detector")
    images = folder / root

    def predicted(normals: NormalFolder | None) -> tuple[str, str]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        ask = Ask(tmp_path / "detector", [str(images)], out, device="cpu", normals=normals)
        predict_images(ask, Console(1))
        said = capsys.readouterr()
        return said.out, said.err

    text, said = predicted(None)
    assert text.endswith(f"; {SEES}\n")
    assert ("of which 12 were taken from" in said) == own
    normals = NormalFolder(next(images.glob("*/train/good")), BankParams())
    assert f"; {SEES}; few-shot: " in predicted(normals)[0]
    text, said = predicted(replace(normals, alone=True))
    assert "norm); few-shot: " in text
    assert "not zero-shot" not in said


def test_copies_of_an_image_share_a_fold_and_kinds_are_spread(store: FeatureStore) -> None:
    folds = class_sums(store).folds
    images = [store.spec.sources[path] for path in store.table["path"]]
    by_image = {
        one: {int(f) for f, i in zip(folds, images, strict=True) if i == one} for one in images
    }
    assert all(len(found) == 1 for found in by_image.values())
    assert set(folds.tolist()) == set(range(FOLDS))
    for _, rows in store.table.groupby("defect"):
        assert len(np.unique(folds[rows.index])) >= 3


def test_sets_inside_a_union_are_made(at_root):
    names = ("one", "two", "three")
    sets = {name: PAINTED | {"root": f"./union/{name}"} for name in names}
    union = {"name": "painted", "layout": "synthetic", "root": "union", "sets": ["one", "two"]}
    other = {"name": "other", "layout": "mvtec", "root": "other"}
    run = run_of(synthetic_sets=sets, datasets=[union, other])
    synthetic.synthesise_sets(run, [run.params.dataset("other")])
    assert not Path("union").exists()
    synthetic.synthesise_sets(run, [run.params.dataset("painted")])
    assert sorted(path.name for path in Path("union").iterdir()) == ["one", "two"]
    shutil.rmtree("union")
    absolute = union | {"root": str(at_root / "union" / "three"), "sets": []}
    run = run_of(synthetic_sets=sets, datasets=[absolute, other])
    synthetic.synthesise_sets(run, [run.params.dataset("painted")])
    assert [path.name for path in Path("union").iterdir()] == ["three"]


def test_a_set_that_the_recipe_does_not_have_is_refused_with_those_it_has():
    run = run_of()
    with pytest.raises(SpgError, match="'pointed' is not among the recipe's synthetic_sets: paint"):
        synthetic.synthesise_sets(run, name="pointed")
    with pytest.raises(SpgError, match="'demo' is not among the recipe's demo_sets: none"):
        features.write_demo_sets(run, "demo")


def test_no_direction_is_told_from_none_of_the_auxiliary_set_that_was_asked_for():
    with pytest.raises(SpgError, match=r"has no direction\. Add"):
        targets_of(run_of(directions=[]), None)
    run = run_of(auxiliaries=["painted", "target"])
    with pytest.raises(SpgError, match=r"has no direction from target\. Add"):
        targets_of(run.narrowed("target"), None)
