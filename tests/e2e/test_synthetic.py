"""An auxiliary set from normal images alone: the command, and the pipeline's stages on it."""

import json
from pathlib import Path

import pytest
from layouts import write_mvtec
from PIL import Image

from e2e.helpers import edit_params, must, one_message, pipeline_folder, run_stages, spg

pytestmark = pytest.mark.slow

QUICK = {"sae.epochs": 1, "sae.dict_size": 64, "sae.k": 4, "backbone.image_size": 64}


def test_the_command_makes_a_set_of_a_folder_and_says_what_is_wrong(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.linear_gradient("L").resize((60, 50)).save(tmp_path / "good" / name)
    arguments = ("synthesise", "good", "set", "--per-image", 3, "--kinds", "scar,perlin")
    made = json.loads(must(spg(*arguments, "--json", cwd=tmp_path)))
    assert made == {"root": "set", "written": True, "normal": 2, "anomalous": 6}
    again = spg(*arguments, cwd=tmp_path)
    assert "already in set" in again.stderr
    assert "kinds.1: Input should be" in one_message(
        spg("synthesise", "good", "set", "--kinds", "scar,dent", cwd=tmp_path)
    )
    assert "is no folder" in one_message(spg("synthesise", "bad", "set", cwd=tmp_path))
    (tmp_path / "good" / "b.png").write_bytes(b"no image")
    assert "b.png cannot be read" in one_message(spg("synthesise", "good", "new", cwd=tmp_path))
    assert not (tmp_path / "new").exists()
    less = json.loads(must(spg("synthesise", "good", "new", "--skip-bad", "--json", cwd=tmp_path)))
    assert less["normal"] == 1


def test_a_recipe_trains_on_a_synthetic_set_and_the_report_says_so(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "project")
    write_mvtec(folder / "parts", ["bolt"], train=6)
    write_mvtec(folder / "target", ["nut"], seed=1)
    must(spg("recipe", "use", "demo", cwd=folder))
    edit_params(folder, QUICK | recipe_of(["aux"]))
    run_stages(folder)
    record = json.loads((folder / "made" / "aux" / "synthetic.json").read_text())
    assert len(record["source"]["images"]) == 6
    page = (folder / "artifacts" / "report" / "demo" / "index.html").read_text()
    assert "no real defect is in this" in page
    assert "synthetic defects on 6 normal images" in page
    assert "aux: synthetic defects painted on normal images (parts: not stated)" in page
    # Without DVC the commands make a set that a dataset reads, and no other.
    edit_params(folder, recipe_of(["aux", "second", "third"]))
    must(spg("prepare", "--split", "second", "--quiet", cwd=folder))
    assert sorted(p.name for p in (folder / "made").iterdir()) == ["aux", "second"]


def recipe_of(names: list[str]) -> dict:
    """A recipe's data: synthetic sets of these names, `aux` for training."""
    sets = [
        {"name": n, "root": f"made/{n}", "source": "parts", "layout": "mvtec", "split": "train"}
        for n in names
    ]
    rows = [{"name": n, "layout": "synthetic", "root": f"made/{n}", "split": "all"} for n in names]
    target = {"name": "target", "layout": "mvtec", "root": "target", "split": "test"}
    return {
        "demo_sets": [],
        "synthetic_sets": sets,
        "datasets": [*rows, target],
        "auxiliaries": ["aux"],
        "directions": [{"aux": "aux", "target": "target"}],
    }
