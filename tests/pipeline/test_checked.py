"""Artefacts are at their paths and never taken for others; errors say what mends them."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import write_mvtec, write_visa
from safetensors.torch import save_file

from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import Scores
from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.pipeline import features, targets, training
from spg_pipe.pipeline.checked import (
    checked_detector,
    checked_metrics,
    checked_sae,
    checked_scores,
)
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.study.sweep import sweep

RECIPE: dict[str, Any] = {
    "name": "mini",
    "datasets": [
        {"name": "left", "layout": "mvtec", "root": "left", "split": "test"},
        {"name": "right", "layout": "visa", "root": "right", "split": "test"},
    ],
    "auxiliaries": ["left"],
    "directions": [{"aux": "left", "target": "right"}],
    "backbone": {"alias": "efficientnet-lite0", "image_size": 64, "layers": ["s8", "s16"]},
    "sae": {"dict_size": 32, "k": 4, "tokens": 2400, "batch_tokens": 8},
    "guides": {"epochs": 1},
}
MakeRun = Callable[..., RecipeRun]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage of the recipe has run."""
    folder = tmp_path_factory.mktemp("find")
    write_mvtec(folder / "left")
    write_visa(folder / "right", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = RecipeRun(parse_params(RECIPE, "test"), Console(0), "cpu")
        for dataset in run.params.datasets:
            features.extract(run, dataset)
        _train(run)
        targets.score(run, "right")
        targets.evaluate(run, "right")
    return folder


def _train(run: RecipeRun) -> None:
    training.train_sae(run, "left", 111)
    training.train_guides(run, "left", 111)


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """A copy of the finished folder to work in; gives runs with changed sections."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")

    def run(*, datasets: Any = None, options: bool = True, **sections: dict[str, Any]) -> RecipeRun:
        content = RECIPE | {name: RECIPE.get(name, {}) | new for name, new in sections.items()}
        if datasets is not None:
            content["datasets"] = datasets
        params, recipe = parse_params(content, "test"), parse_params(RECIPE, "test")
        return RecipeRun(params, Console(0), "cpu", base=recipe if options else None)

    return run


def test_everything_of_the_recipe_is_at_its_place(project: MakeRun) -> None:
    run = project()
    left, right = (find_dataset(run.params, name) for name in ("left", "right"))
    store = checked_store(run, left)
    assert checked_sae(run, store, "left", 111) == run.paths.sae("left", 111)
    held = Detector.load(run.paths.detector("left", 111))
    assert checked_detector(run, "left", 111).fingerprint == held.fingerprint
    scores = run.paths.scores("left", "right", 111)
    held_scores = Scores.load(scores).record
    assert checked_scores(run, right, "left", 111).fingerprint == held_scores.fingerprint
    metrics = run.paths.metrics("left", "right", 111)
    assert checked_metrics(run, run.params.directions[0], 111) == (metrics, scores)
    assert metrics.name == "left--right-efficientnet-lite0-64-s111.json"


def test_a_named_input_counts_only_where_it_is_not_the_recipes_own(project, capsys):
    run = dataclasses.replace(project(), console=Console(1))
    paths = run.paths
    left, right, sae = paths.store("left"), paths.store("right"), paths.sae("left", 111)
    detector, scores = paths.detector("left", 111), paths.scores("left", "right", 111)
    assert training.train_sae(run, "left", 111, store=left) == sae
    assert training.train_guides(run, "left", 111, store=left.absolute(), sae=sae) == detector
    assert targets.score(run, "right", detector=detector, store=right) == [scores]
    assert "Judge them with" not in capsys.readouterr().err
    metrics = targets.evaluate(run, "right", scores=scores, store=right)[0]
    assert checked_metrics(run, run.params.directions[0], 111) == (metrics, scores)
    for path in (left, right, sae, detector):
        shutil.copytree(path, Path("moved") / path)
    moved = Path("moved")
    assert training.train_sae(run, "left", 111, store=moved / left) != sae
    assert training.train_guides(run, "left", 111, sae=moved / sae) != detector
    for given in ({"detector": moved / detector}, {"store": moved / right}):
        capsys.readouterr()
        (other,) = targets.score(run, "right", **given)
        assert other != scores
        assert f"evaluate --split right --scores {other}" in capsys.readouterr().err
        assert targets.evaluate(run, "right", scores=other, store=given.get("store")) != [metrics]


CHAIN = ("store", "sae", "detector", "scores", "metrics")


@pytest.mark.parametrize(
    ("section", "first"),
    [
        ({"backbone": {"layers": ["s8"]}}, "store"),
        ({"backbone": {"precision": "bfloat16"}}, "store"),
        ({"extract": {"dtype": "float32"}}, "store"),
        ({"method": {"protocol": "spg"}}, "store"),
        ({"sae": {"k": 2}}, "sae"),
        ({"guides": {"atoms": 8}}, "detector"),
        ({"method": {"detection": "mean_tokens"}}, "detector"),
        ({"decision": {"top_share": 0.1}}, "detector"),
        ({"score": {"rule": "published"}}, "detector"),
        ({"score": {"image_score": "cls"}}, "scores"),
        ({"metrics": {"protocol": "spg"}}, "metrics"),
        ({"bank": {"neighbours": 2}}, None),
        ({"extract": {"skip_bad": True, "batch_images": 2}}, None),
        ({"extract": {"tiles": {"right": [128]}}}, "scores"),
    ],
)
def test_options_lead_to_another_place_from_the_first_artefact_that_they_determine(
    project, section, first
):
    def places(run: RecipeRun) -> dict[str, Path]:
        given = [("left",), *[("left", 111)] * 2, *[("left", "right", 111)] * 2]
        return {n: getattr(run.paths, n)(*a) for n, a in zip(CHAIN, given, strict=True)}

    plain, other, again = places(project()), places(project(**section)), places(project(**section))
    moved = CHAIN[CHAIN.index(first) :] if first else ()
    assert tuple(name for name in CHAIN if other[name] != plain[name]) == moved
    assert other == again
    for name in moved:
        stem, digits = other[name].stem.rsplit("-", 1)
        assert (stem, len(digits)) == (plain[name].stem, 8)
    assert places(project(**section, options=False)) == plain  # a recipe replaces in place


def test_named_inputs_and_other_splits_have_places_of_their_own(project: MakeRun) -> None:
    paths, params = project().paths, project().params
    assert paths.sae("left", 111, {"store": "a"}) != paths.sae("left", 111)
    train = find_dataset(params, "left/train")
    assert paths.store(train).name.startswith("left-train-efficientnet-lite0-64-")
    shutil.copytree("left/bottle/test/good", Path("other/left/good"))
    for row in (train, find_dataset(params, "other/left")):
        assert paths.manifest(row) != paths.manifest(params.dataset("left"))
        assert paths.scores("left", row, 111) != paths.scores("left", "left", 111)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"backbone": {"layers": ["s8"]}}, r"backbone\.layers is .*`spg-pipe extract --split"),
        ({"backbone": {"norm": "post"}}, r"backbone\.norm is pre, not post.*`spg-pipe extract"),
        ({"extract": {"dtype": "float32"}}, r"extract\.dtype is float16, not float32.*--replace`"),
        ({"sae": {"k": 2}}, r"sae\.k is 4, not 2.*`spg-pipe train-sae --aux left --seed 111`"),
        ({"guides": {"atoms": 8}}, r"guides\.atoms is 32, not 8.*`spg-pipe train-guides --aux"),
        ({"decision": {"map": {"guides": 2.0}}}, r"decision\.map\.guides is 1\.0, not 2\.0"),
        ({"score": {"rule": "published"}}, r"score\.rule is additive, not published.*spg-pipe sc"),
    ],
)
def test_an_edited_recipe_says_what_differs_and_the_first_command(project, section, message):
    with pytest.raises(NotThereError, match=message):
        targets.evaluate(project(**section, options=False), "right")


def test_options_without_artefacts_say_the_first_command(project: MakeRun) -> None:
    with pytest.raises(NotThereError) as error:
        targets.evaluate(project(sae={"k": 2}), "right")
    said = re.sub(r"-[0-9a-f]{8} ", "-DIGITS ", str(error.value))
    assert said == (
        "artifacts/sae/mini/left-efficientnet-lite0-64-s111-DIGITS does not exist. The options "
        "ask for other settings than the recipe: there sae.k is 4, not 2. Run `spg-pipe train-sae "
        "--aux left --seed 111` with the same options first. Then `spg-pipe train-guides --aux "
        "left --seed 111`. Then `spg-pipe score --split right --aux left --seed 111`."
    )


@pytest.mark.parametrize(
    ("name", "images", "held"),
    [
        ("left", "left/*/test/good/*", "detector"),
        ("right", "right/*/Data/Images/*/*", "feature store"),
    ],
)
def test_scores_of_an_older_detector_or_store_are_not_taken(project, name, images, held):
    run = project()
    change_an_image(images)
    features.extract(run, run.params.dataset(name), replace=True)
    if name == "left":
        _train(run)
    with pytest.raises(SpgError, match=held + r" is \w{8}, not \w{8}.*spg-pipe score"):
        targets.evaluate(run, "right")
    targets.score(run, "right")
    targets.evaluate(run, "right")


def change_an_image(pattern: str) -> None:
    """The first image becomes a copy of the second."""
    first, second = sorted(Path().glob(pattern))[:2]
    first.write_bytes(second.read_bytes())


def test_local_weights_count_by_their_tensors(project: MakeRun, tmp_path: Path) -> None:
    from spg_pipe.backbones.packaged import PACKAGES

    path = tmp_path / "mine.safetensors"
    packaged = PACKAGES["efficientnet-lite0"].state()
    state = {name: tensor.contiguous() for name, tensor in packaged.items()}
    save_file(state, path)
    run = project(backbone={"weights": str(path)})
    left = run.params.dataset("left")
    with pytest.raises(SpgError, match="does not exist"):
        checked_store(run, left)  # the packaged weights' store is another
    made = features.extract(run, left)
    save_file(dict(reversed(state.items())), path)
    assert checked_store(run, left).path == made
    changed = next(name for name, tensor in state.items() if tensor.dtype == torch.float32)
    state[changed] = state[changed] + 1
    save_file(state, path)
    with pytest.raises(SpgError, match=r"backbone\.weights is \w{8}, not \w{8}"):
        checked_store(run, left)
    path.unlink()  # scoring needs no weights
    assert checked_store(run, left).path == made


def test_a_store_of_other_images_is_not_taken(project: MakeRun) -> None:
    write_mvtec(Path("elsewhere"), ["screw"])
    moved = [dict(d) for d in RECIPE["datasets"]]
    moved[0]["root"] = "elsewhere"
    fewer = [dict(d) for d in RECIPE["datasets"]]
    fewer[1]["categories"] = ["candle"]
    for datasets, name in ((moved, "left"), (fewer, "right")):
        run = project(datasets=datasets, options=False)
        with pytest.raises(SpgError, match=r"images in .* are others.*--replace`"):
            checked_store(run, run.params.dataset(name))


def test_a_changed_label_is_called_that(project: MakeRun) -> None:
    run, table = project(), Path("right/split_csv/1cls.csv")
    text = table.read_text()
    image = "candle/Data/Images/Normal/0002.JPG"
    assert f"normal,{image}" in text
    table.write_text(text.replace(f"normal,{image}", f"anomaly,{image}"))
    with pytest.raises(NotThereError, match=r"labels or order .* have changed.*--replace`"):
        checked_store(run, run.params.dataset("right"))


def test_a_store_that_is_needed_is_finished_but_never_replaced(project: MakeRun) -> None:
    run = project()
    left = run.params.dataset("left")
    metadata = run.paths.store(left) / "zarr.json"
    whole = metadata.read_text()
    metadata.write_text(whole.replace('"complete": true', '"complete": false'))
    assert metadata.read_text() != whole
    assert features.stored(run, left).fingerprint == checked_store(run, left).fingerprint
    change_an_image("left/*/test/good/*")
    features.prepare(run, left)
    swept = run.with_params(run.params.model_copy(update={"sweep": {"sae.k": (2,)}}))
    for needs in (lambda: features.stored(run, left), lambda: sweep(swept)):
        with pytest.raises(SpgError, match=r"have changed.*`spg-pipe extract --split left --rep"):
            needs()


def test_a_prepared_manifest_of_changed_images_makes_the_store_stale(project: MakeRun) -> None:
    run = project()
    left = run.params.dataset("left")
    change_an_image("left/*/test/good/*")
    features.prepare(run, left)
    with pytest.raises(SpgError, match=r"have changed.*spg-pipe extract"):
        checked_store(run, left)


def test_the_report_shows_no_numbers_of_other_settings(project: MakeRun) -> None:
    other = project(sae={"k": 2})
    _train(other)
    targets.score(other, "right")
    with pytest.raises(SpgError, match=r"no metrics .*spg-pipe evaluate"):
        targets.report(other)
    targets.evaluate(other, "right")
    page = targets.report(other).read_text()
    assert "k = 2" in page
    assert "k = 4" not in page


@pytest.mark.parametrize("content", ["[]", '{"inputs": 3}'])
def test_a_config_that_is_none_is_called_damaged(project: MakeRun, content: str) -> None:
    run = project()
    (run.paths.scores("left", "right", 111) / "config.json").write_text(content)
    with pytest.raises(
        DamagedError, match=r"is not a whole scores.*run `spg-pipe score --split right"
    ):
        targets.evaluate(run, "right")
    targets.score(run, "right")
    targets.evaluate(run, "right")


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (".*", "[]", r"is not a whole .*spg-pipe evaluate"),
        (".*", '{"provenance": [1]}', r"is not a whole .*spg-pipe evaluate"),
        ('"scores": "[0-9a-f]{64}"', f'"scores": "{"0" * 64}"', r"scores.*spg-pipe evaluate"),
    ],
)
def test_metrics_that_are_none_or_of_other_scores_are_not_reported(project, pattern, text, message):
    run = project()
    path = run.paths.metrics("left", "right", 111)
    edited, count = re.subn(pattern, text, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1
    path.write_text(re.sub(r',\s*"seal": "\w*"', "", edited))
    with pytest.raises(SpgError, match=message):
        targets.report(run)


@pytest.mark.parametrize(
    ("split", "named"),
    [("right/train", "right/train"), ("right/test", "right"), ("pictures/left", "pictures/left")],
)
def test_advice_names_the_split_as_it_was_given(project: MakeRun, split: str, named: str) -> None:
    shutil.copytree("left/bottle/test/good", Path("pictures/left/good"))
    run = project(backbone={"image_size": 96})
    with pytest.raises(NotThereError, match=f"`spg-pipe extract --split {named}` with"):
        checked_store(run, find_dataset(run.params, split))
