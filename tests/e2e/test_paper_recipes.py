"""Each published recipe through the whole pipeline, on miniature official layouts."""

import json
from pathlib import Path

import pytest
from layouts import write_mvtec, write_visa

from e2e.helpers import dvc, edit_params, must, pipeline_folder, spg
from e2e.random_weights import save_random_weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "patches", "dim"), [("paper-dinov3", 784, 1024), ("paper-openclip", 1369, 768)]
)
def test_paper_recipe_on_miniature_official_layouts(
    recipe: str, patches: int, dim: int, tmp_path: Path
) -> None:
    # The published experiment but for the weights (random), the epochs and the number of images.
    folder = pipeline_folder(tmp_path / "project")
    mvtec = write_mvtec(tmp_path / "mvtec", ["bottle"], good=1, defects=["crack"])
    visa = write_visa(tmp_path / "visa", ["candle"], good=1, anomalous=1)
    must(spg("recipe", "use", recipe, "--mvtec", mvtec, "--visa", visa, cwd=folder))
    weights = save_random_weights(recipe, tmp_path / "weights.safetensors")
    edit_params(folder, {"backbone.weights": str(weights), "sae.epochs": 1, "guides.epochs": 1})
    must(dvc("repro", cwd=folder))
    weights.unlink()
    (store,) = (folder / "artifacts" / "features").glob("visa-*.zarr")
    held = json.loads(must(spg("inspect", store, "--json", cwd=folder)))
    (layer,) = held["layers"].values()
    assert (layer["patches"], layer["dim"]) == (patches, dim)
    tables = [
        json.loads(path.read_text())
        for path in (folder / "artifacts" / "metrics" / recipe).glob("*.json")
    ]
    assert len(tables) == 2
    assert {table["mean"]["protocol"] for table in tables} == {"spg"}
    assert {table["mean"]["method_protocol"] for table in tables} == {"spg"}
    page = (folder / "artifacts" / "report" / recipe / "index.html").read_text()
    # Published figures stand beside ours, with their source, where they are known.
    assert ("SPG, arXiv 2604.02871" in page) == (recipe == "paper-dinov3")
    assert ("0.914" in page) >= (recipe == "paper-dinov3")
