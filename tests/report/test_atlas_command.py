"""`spg-pipe atlas` on a small recipe: the folder, what it refuses, and what it does without."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from spg_pipe.artefacts.record import read_record
from spg_pipe.cli.main import app
from spg_pipe.errors import NotThereError, SpgError
from spg_pipe.explain.atlas_files import AtlasRecord
from spg_pipe.pipeline.atlas import atlas
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.store.reader import FeatureStore

from .conftest import World
from .parsed import Page


def made(world: World, verbosity: int = 0, **options: Any) -> list[Path]:
    run = RecipeRun(world.params, Console(verbosity), device="cpu")
    return atlas(run.narrowed("aux", 111), **options)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = world.copied(tmp_path_factory.mktemp("atlas"))
    (path,) = made(copy)
    assert path == copy.paths.atlas("aux", 111)
    return path


def test_the_folder_holds_tables_crops_and_a_page(folder: Path) -> None:
    record = read_record(folder / "config.json", AtlasRecord, "atlas", "spg-pipe atlas")
    assert [(store.dataset, store.images) for store in record.stores] == [
        ("aux", 6),
        ("target", 9),
    ]
    assert record.other_seeds == (112,)
    for name, digest in record.files_sha256.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    atoms = pd.read_parquet(folder / "atoms.parquet")
    named = pd.concat([atoms["crops"], atoms["projection_crops"]]).dropna()
    crops = {f"crops/{path.name}" for path in (folder / "crops").iterdir()}
    assert set(named) == crops
    page = (folder / "index.html").read_text()
    assert all(name in page for name in crops)
    assert "aux/tile <small>(fitted on)</small>" in page
    assert "only-defects <small>(fitted on)" not in page
    assert set(atoms["category"].dropna()) >= {"aux/tile", "target/only-defects"}
    assert f"mini/{folder.name} (fingerprint {record.detector.fingerprint[:8]})" in page
    text = Page(folder / "index.html").text
    assert record.detector.protocol.name in text
    assert "random atoms, at most 32 of a layer" in text


def test_the_same_inputs_give_the_same_bytes(
    folder: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    made(world, out=Path(), splits=["target", "aux", "target"])
    for path in folder.rglob("*"):
        if path.is_file():
            other = again / path.relative_to(folder)
            assert path.read_bytes() == other.read_bytes(), path.name


def test_all_describes_every_latent_of_trained_guides_too(published: World) -> None:
    (path,) = made(published, every=True, splits=["aux"])
    # The recipe's own atlas has no digits, and stays.
    assert re.fullmatch(r"aux-efficientnet-lite0-64-s111-[0-9a-f]{8}", path.name)
    atoms = pd.read_parquet(path / "atoms.parquet")
    whole = atoms[atoms["category"].isna()]
    assert (whole.groupby("layer").size() == 32).all()
    assert whole["in_detector"].any()
    # Of one category nothing is said of generality.
    assert "atoms are general" not in (path / "index.html").read_text()


def test_without_the_photographs_there_are_no_crops(
    folder: Path, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = world.copied(tmp_path)
    gone = [row.model_dump() | {"root": tmp_path / "gone"} for row in copy.params.datasets]
    (path,) = made(copy.changed(datasets=gone), verbosity=1)
    schemas = [pq.read_schema(each / "atoms.parquet") for each in (path, folder)]
    assert schemas[0] == schemas[1]
    assert list((path / "crops").iterdir()) == []
    assert pd.read_parquet(path / "atoms.parquet")["crops"].isna().all()
    assert "no crops" in (path / "index.html").read_text()
    assert "no crops" in capsys.readouterr().err


def test_a_missing_store_is_left_out_unless_it_was_named(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = world.copied(tmp_path)
    shutil.rmtree(copy.paths.store("target"))
    (path,) = made(copy, verbosity=1)
    assert "Left out of the atlas" in capsys.readouterr().err
    record = read_record(path / "config.json", AtlasRecord, "atlas", "spg-pipe atlas")
    assert [store.dataset for store in record.stores] == ["aux"]
    with pytest.raises(NotThereError, match="spg-pipe extract --split target"):
        made(copy, splits=["target"])
    shutil.rmtree(copy.paths.store("aux"))
    with pytest.raises(SpgError, match="no store to describe"):
        made(copy)


def test_another_sae_is_refused(world: World, tmp_path: Path) -> None:
    detector, other = world.paths.detector("aux", 111), world.paths.sae("aux", 112)
    with pytest.raises(SpgError, match="another SAE") as error:
        made(world, detector=detector, sae=other, out=tmp_path / "out")
    assert "--sae" in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotThereError, match="train-sae --aux aux --seed 111"):
        made(world, detector=detector, sae=tmp_path / "nowhere")


def test_two_sets_of_one_name_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(world.paths.store("target"))
    monkeypatch.setattr("spg_pipe.pipeline.atlas.checked_store", lambda *_: store)
    with pytest.raises(SpgError, match="--split target/train: another of the named sets"):
        made(world, splits=["target", "target/train"])


def test_the_seed_of_a_detector_is_not_chosen(world: World) -> None:
    folder = str(world.paths.detector("aux", 111))
    done = CliRunner().invoke(app, ["atlas", folder, "--seed", "112"])
    assert done.exit_code
    assert "leave DETECTOR out" in " ".join(str(done.exception).split())


def test_what_options_change_is_written_beside_the_recipes(world: World) -> None:
    paths = RecipeRun(world.params, Console(0)).narrowed("aux", 111).paths
    assert paths.audit.parent == world.paths.audit.parent
    assert re.fullmatch(r"mini-[0-9a-f]{8}\.csv", paths.audit.name)
    assert world.paths.audit.name == "mini.csv"


def test_one_place_is_of_one_detector(world: World, tmp_path: Path) -> None:
    run = RecipeRun(world.params, Console(0), device="cpu")
    with pytest.raises(SpgError, match="add --aux and --seed"):
        atlas(run, out=tmp_path / "out")


def test_other_files_are_not_replaced(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(SpgError, match="holds files that are not"):
        made(world, out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_a_folder_that_is_no_detector_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(SpgError, match="detector"):
        made(world, detector=tmp_path)
