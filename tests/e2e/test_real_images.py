"""The pipeline's stages end to end on real images, where there are any."""

import json
import os
from pathlib import Path

import pytest

from e2e.helpers import edit_params, must, pipeline_folder, run_stages, spg


@pytest.mark.slow
def test_real_images_end_to_end(tmp_path: Path) -> None:
    data = os.environ.get("SPG_REAL_DATA")
    if not data:
        pytest.skip("SPG_REAL_DATA is not set: no real images here (.ci/run sets it)")
    folder = pipeline_folder(tmp_path / "project")
    must(spg("recipe", "use", "real-lite0", "--data", data, cwd=folder))
    sets = {"bottle": "mvtec", "cookies": "cookies"}
    changes = {
        "name": "real-short",
        "seeds": [111],
        "datasets": [
            {"name": name, "layout": "mvtec", "root": f"{data}/{root}", "split": "test"}
            for name, root in sets.items()
        ],
        "auxiliaries": ["bottle"],
        "directions": [{"aux": "bottle", "target": "cookies"}],
        "backbone.image_size": 224,
        "sae.dict_size": 512,
        "sae.tokens": 60_000,
        "sae.batch_images": None,
        "sae.batch_tokens": 512,
        "guides.epochs": 8,
    }
    changes["datasets"][0]["categories"] = ["bottle"]
    edit_params(folder, changes)
    run_stages(folder)
    (path,) = (folder / "artifacts" / "metrics" / "real-short").glob("*.json")
    mean = json.loads(path.read_text())["mean"]
    assert mean["counts"]["images"] == 53
    # Far from a good result on so little training, and as far from chance.
    assert mean["metrics"]["pixel_auroc"] > 0.6
