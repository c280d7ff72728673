"""A place that cannot be written to is named before the work, by every command of a researcher."""

from pathlib import Path

import pytest
from pipeline.test_checked import RECIPE

from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params
from spg_pipe.study.choose import choose
from spg_pipe.study.compare import compare
from spg_pipe.study.sweep import sweep

CHANGES = {"sweep": {"sae.k": [2]}, "choose": {"sae.k": [2]}}


@pytest.mark.parametrize("work", [compare, sweep, lambda run: choose(run, "left")])
def test_a_file_in_the_place_of_the_artefacts_is_told_first(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("artifacts").touch()
    with pytest.raises(OSError, match="artifacts") as told:
        work(RecipeRun(parse_params(RECIPE | CHANGES, "test"), Console(0), "cpu"))
    assert Path(told.value.filename).name == "artifacts"
