"""What the pipeline's commands say about what they left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SAE, TinyBackbone, write_folder

from spg_pipe import pipeline
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params


@pytest.fixture
def run(tmp_path: Path) -> RecipeRun:
    """Two categories; one mask is empty, one defect of each has none."""
    root = write_folder(tmp_path / "parts")
    blank = root / "bolt/ground_truth/dent/00_mask.png"
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(blank)
    content = {
        "name": "mini",
        "artifacts": tmp_path / "artifacts",
        "datasets": [{"name": "parts", "layout": "folder", "root": root}],
        "auxiliaries": ["parts"],
        "directions": [],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 32},
        "sae": SAE.model_dump() | {"epochs": 1},
        "guides": {"kind": "trained", "epochs": 1},
    }
    return RecipeRun(parse_params(content, "the test's recipe"), Console(), device="cpu", workers=1)


def test_extract_and_train_guides_say_what_they_left_out(
    run: RecipeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset,) = run.params.datasets
    store = pipeline.extract(run, dataset, backbone=TinyBackbone())
    said = capsys.readouterr().err
    assert "note: 1 given mask without a single anomalous pixel" in said
    assert "bolt/dent/00.png" in said
    sae = pipeline.train_sae(run, "parts", 111, store=store)
    capsys.readouterr()
    pipeline.train_guides(run, "parts", 111, store=store, sae=sae)
    said = capsys.readouterr().err
    assert "note: 2 images of 16 left out of guide training: a defect without a mask" in said
    assert "note: 1 anomalous image without an anomalous pixel at 32×32 (mask" in said
