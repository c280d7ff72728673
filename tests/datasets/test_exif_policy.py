"""The recipe's protocol decides about EXIF orientation, in manifests and in stores that fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from spg_pipe import pipeline
from spg_pipe.errors import SpgError
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params


def run_of(images: Path, artifacts: Path, protocol: str) -> RecipeRun:
    """A recipe with one dataset of layout `folder` and a small backbone."""
    content = {
        "name": "mini",
        "artifacts": str(artifacts),
        "datasets": [{"name": "parts", "layout": "folder", "root": str(images), "split": "all"}],
        "auxiliaries": [],
        "directions": [],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 64, "layers": ["s16"]},
        "method": {"protocol": protocol},
    }
    return RecipeRun(parse_params(content, "the test"), Console(verbosity=0), "cpu")


def test_a_store_of_the_other_exif_policy_does_not_fit(tiny_images: Path, tmp_path: Path) -> None:
    default, spg = (run_of(tiny_images, tmp_path, name) for name in ("default", "spg"))
    (dataset,) = default.params.datasets
    pipeline.extract(default, dataset)
    assert checked_store(default, dataset).spec.exif
    with pytest.raises(SpgError, match="EXIF orientation is True, not False"):
        checked_store(spg, dataset)
