"""Artefacts are found by what they were made from, and never taken for others (docs/cli.md)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import write_mvtec, write_visa
from safetensors.torch import load_file, save_file

from spg_pipe import pipeline
from spg_pipe.errors import DamagedError, NotThereError, SpgError
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.find import find_dataset, find_store
from spg_pipe.pipeline.find_runs import find_detector, find_run, find_sae, find_scores
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import Params, parse_params

RECIPE: dict[str, Any] = {
    "name": "mini",
    "datasets": [
        {"name": "left", "layout": "mvtec", "root": "left", "split": "test"},
        {"name": "right", "layout": "visa", "root": "right", "split": "test"},
    ],
    "auxiliaries": ["left"],
    "directions": [{"aux": "left", "target": "right"}],
    "backbone": {"alias": "efficientnet-lite0", "image_size": 64, "layers": ["s8", "s16"]},
    "sae": {"dict_size": 32, "k": 4, "epochs": 1, "batch_images": 4},
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
        _run_all(run)
    return folder


def _run_all(run: RecipeRun) -> None:
    for dataset in run.params.datasets:
        pipeline.extract(run, dataset)
    _train(run)
    pipeline.score(run, "right")
    pipeline.evaluate(run, "right")


def _train(run: RecipeRun) -> None:
    pipeline.train_sae(run, "left", 111)
    pipeline.train_guides(run, "left", 111)


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """A copy of the finished folder to work in; gives runs with changed sections."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")

    def run(*, datasets: Any = None, **sections: dict[str, Any]) -> RecipeRun:
        content = RECIPE | {name: RECIPE.get(name, {}) | new for name, new in sections.items()}
        if datasets is not None:
            content["datasets"] = datasets
        params = parse_params(content, "test")
        recipe = parse_params(RECIPE, "test")
        changed = {n for n in Params.model_fields if getattr(params, n) != getattr(recipe, n)}
        return RecipeRun(params, Console(0), "cpu", changed=frozenset(changed))

    return run


def test_everything_of_the_recipe_is_found(project: MakeRun) -> None:
    run = project()
    left, right = (find_dataset(run.params, name) for name in ("left", "right"))
    store = find_store(run, left)
    assert find_sae(run, store, "left", 111) == run.paths.sae("left", 111)
    assert find_detector(run, "left", 111) == run.paths.detector("left", 111)
    scores = find_scores(run, right, "left", 111)
    assert scores == run.paths.scores("left", "right", 111)
    found = find_run(run, run.params.directions[0], 111)
    assert (found.scores, found.metrics) == (scores, run.paths.metrics("left", "right", 111))


@pytest.mark.parametrize(
    "backbone", [{"alias": "dinov2-small"}, {"layers": ["s8"]}, {"layers": None}, {"norm": "post"}]
)
def test_scores_of_another_backbone_are_not_taken(
    project: MakeRun, backbone: dict[str, Any]
) -> None:
    run = project(backbone=backbone)
    if backbone == {"layers": None}:  # the alias's own layers are s8 and s16: the same thing
        pipeline.evaluate(run, "right")
        return
    with pytest.raises(SpgError, match="spg-pipe score"):
        pipeline.evaluate(run, "right")


def test_scores_of_an_older_detector_are_not_taken(project: MakeRun) -> None:
    run = project()
    image = sorted(Path("left").glob("*/test/good/*.png"))[0]
    image.write_bytes(sorted(Path("left").glob("*/test/good/*.png"))[1].read_bytes())
    pipeline.extract(run, run.params.dataset("left"), replace=True)
    _train(run)
    with pytest.raises(SpgError, match=r"the detector differ\).*spg-pipe score"):
        pipeline.evaluate(run, "right")
    pipeline.score(run, "right")
    pipeline.evaluate(run, "right")


def test_scores_of_an_older_target_store_are_not_taken(project: MakeRun) -> None:
    run = project()
    images = sorted(Path("right").rglob("*.JPG"))
    images[0].write_bytes(images[1].read_bytes())
    pipeline.extract(run, run.params.dataset("right"), replace=True)
    with pytest.raises(SpgError, match=r"the feature store differ\).*spg-pipe score"):
        pipeline.evaluate(run, "right")


def test_local_weights_count_by_their_tensors(project: MakeRun, tmp_path: Path) -> None:
    from spg_pipe.backbones.packaged import efficientnet_lite0

    first, renamed, other = (tmp_path / f"{n}.safetensors" for n in ("first", "renamed", "other"))
    weights = efficientnet_lite0().state.items()
    save_file({name: tensor.contiguous() for name, tensor in weights}, first)
    run = project(backbone={"weights": str(first)})
    left = run.params.dataset("left")
    with pytest.raises(SpgError, match="no finished feature store"):
        find_store(run, left)  # the packaged weights' store is another
    made = pipeline.extract(run, left)
    assert find_store(run, left).path == made

    first.rename(renamed)
    assert find_store(project(backbone={"weights": str(renamed)}), left).path == made
    state = {name: tensor.clone() for name, tensor in load_file(renamed).items()}
    changed = next(name for name, tensor in state.items() if tensor.dtype == torch.float32)
    state[changed] += 1
    save_file(state, other)
    other.rename(first)
    with pytest.raises(SpgError, match="images and weights"):
        find_store(project(backbone={"weights": str(first)}), left)


def test_a_store_of_other_images_is_not_taken(project: MakeRun) -> None:
    write_mvtec(Path("elsewhere"), ["screw"])
    moved = [dict(d) for d in RECIPE["datasets"]]
    moved[0]["root"] = "elsewhere"
    run = project(datasets=moved)
    with pytest.raises(SpgError, match="no finished feature store"):
        find_store(run, run.params.dataset("left"))
    fewer = [dict(d) for d in RECIPE["datasets"]]
    fewer[1]["categories"] = ["candle"]
    run = project(datasets=fewer)
    with pytest.raises(SpgError, match="no finished feature store"):
        find_store(run, run.params.dataset("right"))


def test_a_prepared_manifest_of_changed_images_makes_the_store_stale(project: MakeRun) -> None:
    run = project()
    left = run.params.dataset("left")
    image = sorted(Path("left").glob("*/test/good/*.png"))[0]
    image.write_bytes(sorted(Path("left").glob("*/test/good/*.png"))[1].read_bytes())
    pipeline.prepare(run, left)
    with pytest.raises(SpgError, match="spg-pipe extract"):
        find_store(run, left)


def test_several_that_fit_are_listed(project: MakeRun) -> None:
    run = project()
    place = run.paths.sae("left", 111)
    for name in ("one", "two"):
        shutil.copytree(place, place.with_name(name))
    shutil.rmtree(place)
    store = find_store(run, run.params.dataset("left"))
    with pytest.raises(SpgError, match=r"Several fit; name one with --sae:\n.*one\n.*two"):
        find_sae(run, store, "left", 111)


def test_the_report_shows_no_numbers_of_other_settings(project: MakeRun) -> None:
    other = project(sae={"k": 2})
    _train(other)
    pipeline.score(other, "right")
    with pytest.raises(SpgError, match=r"no metrics .*spg-pipe evaluate"):
        pipeline.report(other)
    pipeline.evaluate(other, "right")
    page = pipeline.report(other).read_text()
    assert "k = 2" in page
    assert "k = 4" not in page


def test_metrics_of_other_options_are_reported_under_them(project: MakeRun) -> None:
    histogram = project(metrics={"accumulator": "histogram"})
    with pytest.raises(SpgError, match="spg-pipe evaluate"):
        pipeline.report(histogram)
    pipeline.evaluate(histogram, "right")
    assert pipeline.report(histogram).is_file()


def test_preparing_another_folder_leaves_the_recipes_manifest_alone(project: MakeRun) -> None:
    run = project()
    own = pipeline.prepare(run, run.params.dataset("left"))
    before = own.read_bytes()
    folder = Path("other/left")
    shutil.copytree("left/bottle/test/good", folder / "good")
    other = find_dataset(run.params, str(folder))
    place = pipeline.prepare(run, other.model_copy(update={"split": "test"}))
    assert place != own
    assert own.read_bytes() == before


def test_what_differs_is_named_once_in_full_with_the_first_command(project: MakeRun) -> None:
    run = project(sae={"k": 2})
    store = find_store(run, run.params.dataset("left"))
    with pytest.raises(NotThereError, match=r"data \(sae\.k differ\)\. Run `spg-pipe train-sae` w"):
        find_sae(run, store, "left", 111)
    with pytest.raises(NotThereError) as error:
        pipeline.evaluate(run, "right")
    assert "(sae.k differ). Run `spg-pipe train-sae` first and then what follows up to" in str(
        error.value
    )
    assert "`spg-pipe score`, all with the same options" in str(error.value)
    with pytest.raises(NotThereError, match=r"\(method\.tau differ\)\. Run `spg-pipe train-gui"):
        pipeline.evaluate(project(method={"tau": 0.1}), "right")
    # A decision is fitted on blurred maps, so that its detector comes first.
    with pytest.raises(NotThereError, match=r"\(score\.sigma differ\)\. Run `spg-pipe train-gui"):
        pipeline.evaluate(project(score={"sigma": 2.0}), "right")


@pytest.mark.parametrize("content", ["[]", "{}", '{"inputs": 3}', '"text"'])
def test_a_config_that_is_none_is_called_damaged(project: MakeRun, content: str) -> None:
    run = project()
    place = run.paths.scores("left", "right", 111)
    (place / "config.json").write_text(content)
    with pytest.raises(DamagedError, match=r"is damaged.*Run `spg-pipe score` with the same opt"):
        pipeline.evaluate(run, "right")
    pipeline.score(run, "right")
    pipeline.evaluate(run, "right")


@pytest.mark.parametrize("content", ["[]", '{"provenance": [1]}'])
def test_metrics_that_are_none_are_left_out_of_the_report_with_a_message(
    project: MakeRun, content: str
) -> None:
    run = project()
    run.paths.metrics("left", "right", 111).write_text(content)
    with pytest.raises(SpgError, match=r"is damaged|no metrics of"):
        pipeline.report(run)


@pytest.mark.parametrize(
    ("split", "named"),
    [("right/train", "right/train"), ("right/test", "right"), ("pictures/left", "pictures/left")],
)
def test_advice_names_the_split_as_it_was_given(project: MakeRun, split: str, named: str) -> None:
    shutil.copytree("left/bottle/test/good", Path("pictures/left/good"))
    run = project(backbone={"image_size": 96})
    with pytest.raises(NotThereError, match=f"`spg-pipe extract --split {named}` with"):
        find_store(run, find_dataset(run.params, split))
