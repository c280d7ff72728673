"""What the browser looks at: pages that the pipeline made of a tiny recipe."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from layouts import painted, save, texture, write_mvtec
from pipeline.test_own_page import predict
from report.conftest import made
from report.handmade import atlas_folder

from spg_pipe.decision.calibration import Limits, Threshold
from spg_pipe.detector.model import Detector
from spg_pipe.pipeline.atlas import atlas
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.pipeline.targets import report
from spg_pipe.predict.result import Result
from spg_pipe.predict.shown import stem_of
from spg_pipe.predict.table import results_of
from spg_pipe.recipe.params import parse_params

SCRIPT = "<script>alert(1)</script>.png"


def made_pages(root: Path, tiny: Detector) -> dict[str, Path]:
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
    page = report(run)
    gallery = page.parent / "aux--target"
    own = own_pages(tiny, root / "own")
    return {
        "report": page,
        "gallery": gallery / "index.html",
        "image": next((gallery / "images").glob("*.html")),
        "atlas": made_atlas / "index.html",
        "atlas-by-hand": root / "by-hand" / "index.html",
        **own,
    }


def own_pages(detector: Detector, root: Path) -> dict[str, Path]:
    """What `predict --report` makes of own images in two groups, one of them bad."""
    rng = np.random.default_rng(3)
    for number, name in enumerate(("one/a.png", "one/b.png", f"two/{SCRIPT}", "two/c.png")):
        image = texture((48, 64), rng)
        save(painted(image, rng)[0] if number % 2 else image, root / "images" / name)
    (root / "images" / "two" / "bad.png").write_bytes(b"no picture")
    run = partial(predict, detector, root / "images", root / "out")
    run(page=False)
    results = [each for each in results_of(root / "out") if isinstance(each, Result)]
    middle = float(np.mean(sorted(each.score for each in results)[1:3]))
    pixel = sorted(each.peak for each in results)[1]
    limits = Limits(
        image=Threshold(value=middle, says="Of a test."),
        pixel=Threshold(value=pixel, says=""),
        scores=(middle - 2, middle - 1, middle - 0.5),
        anomalous=0,
    )
    run(limits)
    pages = root / "out" / "report"
    script = next(each.path for each in results if SCRIPT in each.path)
    return {
        "own": pages / "index.html",
        "own-image": pages / "images" / f"{stem_of(script)}.html",
    }
