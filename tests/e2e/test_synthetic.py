"""An auxiliary set from normal images alone: the command, and the pipeline's stages on it."""

import json
from pathlib import Path

import numpy as np
import pytest
from layouts import save, texture, write_mvtec
from pipeline.test_parts import command

from e2e.helpers import edit_params, must, pipeline_folder, run_stages, spg

QUICK = {
    "sae.tokens": 1600,
    "sae.batch_tokens": 16,
    "sae.dict_size": 64,
    "sae.k": 4,
    "backbone.image_size": 64,
}


def test_the_command_makes_a_set_of_a_folder_and_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        save(texture((50, 60), np.random.default_rng(0)), Path("good") / name)

    def synthesise(*arguments: str) -> tuple[int, str, str]:
        code, out, err = command(capsys, "synthesise", *arguments)
        return code, out, " ".join(err.split())

    given = ("good", "set", "--per-image", "3", "--kinds", "scar,perlin")
    made = json.loads(synthesise(*given, "--json")[1])
    assert made == {"root": "set", "written": True, "normal": 2, "anomalous": 6}
    assert "already in set" in synthesise(*given)[2]
    code, _, said = synthesise("good", "set", "--kinds", "scar,dent")
    assert (code, "kinds.1: Input should be" in said) == (1, True)
    assert "is no folder" in synthesise("bad", "set")[2]
    Path("good/b.png").write_bytes(b"no image")
    assert "b.png cannot be read" in synthesise("good", "new")[2]
    assert not Path("new").exists()
    assert json.loads(synthesise("good", "new", "--skip-bad", "--json")[1])["normal"] == 1


@pytest.mark.slow
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
    given = {"source": "parts", "layout": "mvtec", "split": "train"}
    sets = {name: given | {"root": f"made/{name}"} for name in names}
    rows = [{"name": n, "layout": "synthetic", "root": f"made/{n}", "split": "all"} for n in names]
    target = {"name": "target", "layout": "mvtec", "root": "target", "split": "test"}
    return {
        "demo_sets": {},
        "synthetic_sets": sets,
        "datasets": [*rows, target],
        "auxiliaries": ["aux"],
        "directions": [{"aux": "aux", "target": "target"}],
    }
