"""Each published recipe through the whole pipeline, on miniature official layouts."""

import json
from pathlib import Path

import pytest
import yaml
from backbones.helpers import make_clip_shallower, make_smaller, save_weights
from layouts import write_mvtec, write_visa

from e2e.helpers import edit_params, must, pipeline_folder, run_stages, spg

BLOCKS = 1
"""Instead of the 24 that the recipes name."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "patches", "dim"), [("paper-dinov3", 784, 1024), ("paper-openclip", 1369, 768)]
)
def test_paper_recipe_on_miniature_official_layouts(
    recipe: str, patches: int, dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The published experiment but for the weights (random), the number of blocks, of images, of
    # atoms, of images in a batch of the SAE and of the guides' epochs.
    folder = pipeline_folder(tmp_path / "project")
    mvtec = write_mvtec(tmp_path / "mvtec", ["bottle"], good=1, defects=["crack"])
    visa = write_visa(tmp_path / "visa", ["candle"], good=1, anomalous=1)
    must(spg("recipe", "use", recipe, "--mvtec", mvtec, "--visa", visa, cwd=folder))
    layer = yaml.safe_load((folder / "params.yaml").read_text())["backbone"]["layers"]
    assert layer == ["24"]
    weights = shallow_weights(recipe, tmp_path / "weights.safetensors", monkeypatch)
    shallow = {"backbone.weights": str(weights), "backbone.layers": [str(BLOCKS)]}
    edit_params(folder, shallow | {"sae.batch_images": 1, "sae.dict_size": 256, "guides.epochs": 1})
    run_stages(folder)
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
    assert {table["context"]["protocol"] for table in tables} == {"spg"}
    assert {table["context"]["method_protocol"] for table in tables} == {"spg"}
    page = (folder / "artifacts" / "report" / recipe / "index.html").read_text()
    # Published figures stand beside ours, with their source, where they are known.
    assert ("SPG, arXiv 2604.02871" in page) == (recipe == "paper-dinov3")
    assert ("0.914" in page) >= (recipe == "paper-dinov3")


def shallow_weights(recipe: str, path: Path, patch: pytest.MonkeyPatch) -> Path:
    """Give the recipe's model `BLOCKS` blocks, and save random weights for it."""
    import open_clip
    import timm
    import torch

    torch.manual_seed(0)
    if recipe == "paper-dinov3":
        make_smaller(patch, "vit_large_patch16_dinov3", depth=BLOCKS)
        return save_weights(timm.create_model("vit_large_patch16_dinov3"), path)
    make_clip_shallower(patch, BLOCKS)
    config = open_clip.get_model_config("ViT-L-14-336-quickgelu")
    config["text_cfg"] |= {"layers": 1, "vocab_size": 100}
    # A whole CLIP, as it is published: the text tower is left out on loading.
    return save_weights(open_clip.CLIP(**config), path)
