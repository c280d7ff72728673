"""Stores of a part of a dataset, or without its bad images: where they go, who takes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from layouts import write_mvtec
from typer.testing import CliRunner

from pipeline.test_checked import RECIPE as CHECKED
from spg_pipe.backbones.base import Backbone
from spg_pipe.cli.main import app
from spg_pipe.cli.options import Options, names_of
from spg_pipe.errors import SpgError
from spg_pipe.pipeline import features, targets, training
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console, exit_code
from spg_pipe.pipeline.datasets import find_dataset
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.store.reader import FeatureStore

RECIPE: dict[str, Any] = CHECKED | {
    "datasets": [{"name": n, "layout": "mvtec", "root": n} for n in ("left", "right")],
    "backbone": {"alias": "efficientnet-lite0", "image_size": 64, "layers": ["s8"]},
    "sae": {"dict_size": 16, "k": 4, "tokens": 2400, "batch_tokens": 8},
}
BAD = Path("left/bottle/test/good/001.png")
Extract = Callable[..., Path]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return features.load_backbone(RecipeRun(parse_params(RECIPE, "test"), Console(0), "cpu"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecipeRun:
    """A run in a folder with two datasets of eight images."""
    monkeypatch.chdir(tmp_path)
    write_mvtec(Path("left"))
    write_mvtec(Path("right"), seed=1)
    Path("params.yaml").write_text(yaml.safe_dump(RECIPE))
    return skipping(False)


def skipping(skip_bad: bool) -> RecipeRun:
    return Options(skip_bad=skip_bad, device="cpu", quiet=True).run()


def extract(run: RecipeRun, backbone: Backbone, name: str = "left", **options: Any) -> Path:
    dataset = find_dataset(run.params, name)
    return features.extract(run, dataset, backbone=backbone, **options)


def left(run: RecipeRun) -> Any:
    return run.params.dataset("left")


def truncate(path: Path) -> bytes:
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    return whole


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"limit": 4}, "4 of 8 images (--limit)"),
        ({"categories": ["screw"]}, "only screw (--categories)"),
        (
            {"limit": 2, "categories": ["screw"]},
            "only screw (--categories), 2 of 4 images (--limit)",
        ),
    ],
)
def test_a_part_is_no_ones_whole_dataset(run, backbone, options, note):
    part = extract(run, backbone, **options)
    assert part != run.paths.store("left")
    held = FeatureStore(part)
    assert ", ".join(held.spec.notes[-len(options) :]) == note
    for _ in range(2):  # with the folder here, and without it
        with pytest.raises(SpgError, match="spg-pipe extract --split"):
            checked_store(run, left(run))
        if Path("left").exists():
            assert checked_store(run, left(run), part).path == part
            Path("left").rename("gone")
    Path("gone").rename("left")
    whole = extract(run, backbone)
    assert whole == run.paths.store("left")
    assert checked_store(run, left(run)).path == whole


def test_options_that_leave_nothing_out_give_the_datasets_own_store(run, backbone):
    names = names_of("--categories", "screw, bottle, screw", "bottle,screw")
    assert names == ["screw", "bottle"]
    place = extract(run, backbone, limit=8, categories=names)
    assert place == run.paths.store("left")
    assert FeatureStore(place).selection == {}
    assert checked_store(run, left(run)).path == place


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 4, "out": "the whole's"}, r"place of the whole dataset left.*--out"),
        ({"out": Path("left/bottle/s.zarr")}, r"among the images of left.*outside"),
        (
            {"categories": ["screw", "botle"]},
            r"no category botle\. Did you mean bottle\? It has: bott",
        ),
    ],
)
def test_places_and_categories_that_cannot_be_are_refused(run, backbone, options, message):
    if options.get("out") == "the whole's":
        options = options | {"out": run.paths.store("left")}
    with pytest.raises(SpgError, match=message):
        extract(run, backbone, **options)
    assert not list(Path().rglob("*.zarr"))


def test_later_commands_use_a_part_by_name_and_never_take_its_artefacts_for_the_wholes(
    run, backbone
):
    aux = extract(run, backbone, limit=6)
    target = extract(run, backbone, "right", categories=["bottle"], limit=3)
    sae = training.train_sae(run, "left", 111, store=aux)
    detector = training.train_guides(run, "left", 111, store=aux, sae=sae)
    (scores,) = targets.score(run, "right", detector=detector, store=target)
    original = Options(overrides=["metrics.resolution=original"], device="cpu", quiet=True).run()
    assert len(targets.evaluate(original, "right", scores=scores, store=target)) == 1
    for name in ("left", "right"):
        shutil.rmtree(Path(name))  # nothing but artefacts is left to compare with
    with pytest.raises(SpgError, match="spg-pipe train-guides"):
        targets.score(run, "right", store=target)
    (metrics,) = targets.evaluate(run, "right", scores=scores, store=target)
    assert targets.read_metrics(metrics).mean.counts.images == 3
    with pytest.raises(SpgError, match="spg-pipe extract --split right"):
        targets.evaluate(run, "right", scores=scores)  # there is no store of the whole of right


@pytest.mark.parametrize("prepared", [None, False, True])
def test_a_store_without_bad_images_is_the_datasets_own(run, backbone, prepared):
    truncate(BAD)
    if prepared is not None:  # headers alone do not find a truncated image
        features.prepare(skipping(prepared), left(run))
    with pytest.raises(SpgError, match=BAD.name):
        extract(run, backbone)
    place = extract(skipping(True), backbone)
    assert place == run.paths.store("left")
    assert checked_store(run, left(run)).path == place
    assert len(FeatureStore(place)) == 7
    BAD.unlink()  # as good as left out
    assert checked_store(run, left(run)).path == place


def test_a_store_from_which_images_are_missing_otherwise_is_refused(run, backbone):
    whole = truncate(BAD)
    features.prepare(skipping(True), left(run))  # stale in the end: it hides no store
    extract(skipping(True), backbone)
    other = BAD.with_name("002.png")
    other.write_bytes(whole)  # one more
    with pytest.raises(SpgError, match="spg-pipe extract --split"):
        checked_store(run, left(run))
    other.unlink()
    checked_store(run, left(run))
    BAD.write_bytes(whole)  # repaired
    with pytest.raises(SpgError, match="spg-pipe extract --split"):
        checked_store(run, left(run))
    with pytest.raises(SpgError, match=r"no longer left out: bottle/test/good/001\.png.*--replace"):
        extract(run, backbone)
    place = extract(run, backbone, replace=True)
    assert checked_store(run, left(run)).path == place


def test_a_stale_manifest_does_not_hide_the_store_of_the_repaired_images(run, backbone):
    whole = truncate(BAD)
    features.prepare(skipping(True), left(run))
    BAD.write_bytes(whole)
    place = extract(run, backbone)
    assert checked_store(run, left(run)).path == place


def test_a_folder_with_a_bad_image_is_found_by_its_content(run, backbone):
    folder = Path("line")
    shutil.copytree("left/bottle/test", folder)
    truncate(folder / "good" / "001.png")
    place = extract(skipping(True), backbone, "line")
    dataset = find_dataset(run.params, "line")
    assert checked_store(run, dataset).path == place
    shutil.copy("left/screw/test/good/000.png", folder / "good" / "000.png")
    with pytest.raises(SpgError, match="spg-pipe extract --split"):
        checked_store(run, dataset)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `spg-pipe …`, in this process."""
    code = exit_code(lambda: app(arguments, standalone_mode=False))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(("name", "holder"), [("prepare", "manifests"), ("extract", "stores")])
def test_commands_say_what_was_left_out(run, capsys, name, holder):
    truncate(BAD)
    code, out, _ = command(capsys, name, "--split", "left", "--skip-bad", "--json")
    assert code == 0
    result = json.loads(out)
    (place,) = result[holder]
    (bad,) = result["skipped"][place]
    assert bad["path"] == "bottle/test/good/001.png"
    assert "truncated" in bad["reason"]
    Path("params.yaml").write_text(yaml.safe_dump(RECIPE | {"extract": {"skip_bad": True}}))
    code, _, err = command(capsys, name, "--split", "left")
    assert code == 0
    assert f"note: 1 image left out (skip_bad): {bad['path']} {bad['reason']}" in err


def test_extract_reads_its_options(run: RecipeRun, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("extract", "--split", "left", "--categories", "bottle, screw", "--limit", "5")
    code, _, err = command(capsys, *arguments, "--device", "cpu")
    assert code == 0
    (place,) = Path("artifacts/features").glob("*.zarr")
    assert f"note: 5 of 8 images (--limit); use it with --store {place}" in err
    for categories in ("a,,b", ""):
        code, _, err = command(capsys, "extract", "--split", "left", "--categories", categories)
        assert (code, "expected names with" in err) == (1, True)
    code, _, err = command(capsys, "extract", "--categories", "bottle")
    assert (code, "--split NAME" in err) == (1, True)
    assert CliRunner().invoke(app, ["extract", "--limit", "0"]).exit_code == 2
