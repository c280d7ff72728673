"""What the browser looks at: pages that the pipeline made of a tiny recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from layouts import painted, save, texture, write_mvtec
from report.conftest import made
from report.handmade import atlas_folder

from spg_pipe.detector.model import Detector
from spg_pipe.pipeline.atlas import atlas
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.targets import report
from spg_pipe.recipe.params import parse_params

SCRIPT = "<script>alert(1)</script>.png"


def made_pages(root: Path) -> dict[str, Path]:
    """A report and an atlas that it links, of images one of which has markup for a name."""
    write_mvtec(root / "aux", ("tile",), good=2, per_defect=2, seed=1)
    rng = np.random.default_rng(0)
    for number in range(3):
        save(texture((48, 64), rng), root / "target" / "good" / f"{number}.png")
    image, mask = painted(texture((48, 64), rng), rng)
    save(image, root / "target" / "dent" / SCRIPT)
    save(mask * np.uint8(255), root / "target" / "ground_truth" / "dent" / SCRIPT)
    recipe = {
        "name": "browser",
        "artifacts": root / "artifacts",
        "seeds": (1,),
        "datasets": [
            {"name": "aux", "layout": "mvtec", "root": root / "aux"},
            {"name": "target", "layout": "folder", "root": root / "target"},
        ],
        "auxiliaries": ["aux"],
        "directions": [{"aux": "aux", "target": "target"}],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 64},
        "sae": {"dict_size": 32, "k": 4, "tokens": 2400, "batch_tokens": 8},
        "guides": {"atoms": 5},
    }
    world = made(parse_params(recipe, "the test's recipe"), root, extract=True)
    run = RecipeRun(world.params, Console(verbosity=0), device="cpu", workers=1)
    made_atlas = atlas(run)[0]
    detector = Detector.load(world.paths.detector("aux", 1))
    atlas_folder(detector, root / "by-hand", ("tile", SCRIPT), every=True)
    return {
        "report": report(run),
        "atlas": made_atlas / "index.html",
        "atlas-by-hand": root / "by-hand" / "index.html",
    }
