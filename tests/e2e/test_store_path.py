"""One store's path through DVC: hard links, changed parameters, and back."""

from pathlib import Path

import pytest
from layouts import write_mvtec
from tiny import files

from e2e.helpers import commit, dvc, edit_params, must, pipeline_folder, run, spg
from e2e.test_pipeline import QUICK
from spg_pipe.store.reader import FeatureStore
from spg_pipe.store.verify import require_intact, verify

STAGE = "extract@data0"
PLACE = "artifacts/features/left-efficientnet-lite0-64.zarr"


@pytest.mark.slow
def test_a_stores_path_holds_what_the_parameters_say(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "project", git=True)
    write_mvtec(folder / "left")
    must(spg("recipe", "use", "demo", cwd=folder))
    edit_params(folder, QUICK)
    must(dvc("repro", STAGE, cwd=folder))
    commit(folder)
    store = folder / PLACE
    first = files(store)
    assert FeatureStore(store).spec.dtype == "float16"

    # Checked out with hard links: read-only, the same file as in DVC's cache.
    (folder / ".dvc" / "config.local").write_text("[cache]\n    type = hardlink\n")
    must(dvc("checkout", "--relink", "--force", STAGE, cwd=folder))
    shard = store / "tokens_s16/c/0/0/0"
    assert shard.stat().st_nlink > 1
    assert not shard.stat().st_mode & 0o222
    require_intact(store, verify(store))

    # A changed parameter: the path holds the new store.
    edit_params(folder, {"extract.dtype": "float32", "extract.compressor": "zstd"})
    must(dvc("repro", STAGE, cwd=folder))
    assert FeatureStore(store).spec.compressor == "zstd"
    require_intact(store, verify(store))

    # Back: nothing of that was written through a link into the cache.
    must(run("git", "checkout", "-q", "--", "params.yaml", "dvc.lock", cwd=folder))
    must(dvc("checkout", "--force", STAGE, "recipe", cwd=folder))
    assert files(store) == first
    assert "up to date" in must(dvc("repro", STAGE, cwd=folder))

    # By hand, over hard links: refused with the difference, replaced where that is asked for.
    changed = ("--split", "left", "--out", PLACE, "--set", "extract.dtype=float32")
    assert "--replace" in spg("extract", *changed, cwd=folder).stderr
    assert files(store) == first
    must(spg("extract", *changed, "--replace", cwd=folder))
    assert FeatureStore(store).spec.dtype == "float32"
    require_intact(store, verify(store))
