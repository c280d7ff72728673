"""Small defects on large images: one view of the whole image against overlapping tiles.

    python -m benchmarks.tiling [--images N] [--folder DIR]

Images of 2048² are cut from the enlarged photographs of one demo set, with its own kinds of defects
of at most 16 pixels painted on half of them; the detector learns from the other demo
set. Prints pixel AP, pixel AUROC and image AUROC of each view, the peak memory of `extract` and of
`predict`, each in a process of its own, and how the maps step at the tiles' borders, in deviations
of the steps near by. The last line is one JSON object with the ratios.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.memory import peak_megabytes
from spg_pipe.datasets.paint.catalogue import DEMO_SETS
from spg_pipe.datasets.paint.drawn import paint
from spg_pipe.datasets.paint.photographs import read_photograph, view

AUXILIARY, TARGET = "demo-visa", "demo-mvtec"
ALIAS, VIEW, LAYERS = "efficientnet-lite0", 448, ("s16", "s32")
SIDE = 2048
LARGEST = 16
"""Height and width of a defect, pixels, at most."""
WINDOW = 20
"""Side of the windows that defects are painted in, pixels."""
DEFECTS = 8
"""Tries an image; defects that come out larger are left out."""
VIEWS: dict[str, tuple[int, ...]] = {
    "one view": (),
    "tiles": (SIDE,),
    "tiles and one view": (VIEW, SIDE),
}
TASKS = ("extract", "predict")
"""What takes the memory that is measured."""
STRIDE = 32
"""Pixels between columns at the same place in their patches of every layer: between patches maps
are steeper than inside them."""
NEAR = 5
"""Columns to either side of a border, so far apart, that its step is compared with."""


def write_images(root: Path, images: int) -> None:
    """`root`/<category>/good, defect and ground_truth/defect: so many of each class."""
    demo = DEMO_SETS[TARGET]
    for place, (category, photograph) in enumerate(demo.categories.items()):
        pixels = _enlarged(read_photograph(photograph))
        for number in range(2 * images):
            rng = np.random.default_rng([place, number])
            image, mask = view(pixels, SIDE, rng), np.zeros((SIDE, SIDE), bool)
            for attempt in range(DEFECTS if number % 2 else 0):
                kind = demo.painters[attempt % len(demo.painters)]
                painted, where = paint(image, kind, rng, WINDOW)
                if max(np.ptp(np.flatnonzero(where.any(axis=axis))) for axis in (0, 1)) < LARGEST:
                    image, mask = painted, mask | where
            image = np.clip(image + rng.normal(0, 0.004, image.shape), 0, 1)
            kind = "defect" if number % 2 else "good"
            _save(np.rint(image * 255).astype(np.uint8), root / category / kind / f"{number}.png")
            if number % 2:
                truth = root / category / "ground_truth" / kind / f"{number}_mask.png"
                _save(mask.astype(np.uint8) * 255, truth)


def _enlarged(photograph: np.ndarray) -> np.ndarray:
    """A photograph (H, W, 3) as large as `view` needs it for images of `SIDE` pixels."""
    scale = max(1.0, 1.12 * SIDE / min(photograph.shape[:2]))
    size = round(photograph.shape[1] * scale), round(photograph.shape[0] * scale)
    channels = [
        np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BICUBIC))
        for channel in np.ascontiguousarray(np.moveaxis(photograph, 2, 0))
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def recipe(root: Path) -> dict[str, Any]:
    """Train on the auxiliary demo set; the target is what `write_images` wrote."""
    data = root / "data"
    return {
        "name": "tiling",
        "artifacts": str(root / "artifacts"),
        "demo_sets": {AUXILIARY: {"root": str(data / AUXILIARY)}},
        "datasets": [
            {"name": AUXILIARY, "layout": "visa", "root": str(data / AUXILIARY)},
            {"name": "large", "layout": "folder", "root": str(data / "large"), "split": "all"},
        ],
        "auxiliaries": [AUXILIARY],
        "directions": [{"aux": AUXILIARY, "target": "large"}],
        "backbone": {"alias": ALIAS, "image_size": VIEW, "layers": list(LAYERS)},
        "sae": {"dict_size": 512, "k": 16, "epochs": 10},
        "metrics": {"accumulator": "histogram"},
    }


def measure(root: Path, images: int) -> dict[str, float]:
    """Extract, score and evaluate the large images in each view."""
    from spg_pipe.pipeline import features, targets, training

    write_images(root / "data" / "large", images)
    found: dict[str, dict[str, Any]] = {}
    for name, sides in VIEWS.items():
        run = _run(root, sides)
        features.write_demo_sets(run)
        for dataset in run.params.datasets:
            features.extract(run, dataset, replace=dataset.name == "large")
        if not found:
            training.train_sae(run, AUXILIARY, 111)
            training.train_guides_together([run], AUXILIARY, [111])
        (scores,) = targets.score(run, "large")
        (metrics,) = targets.evaluate(run, "large")
        found[name] = dict(targets.read_metrics(metrics).mean.metrics)
        found[name]["step"] = border_step(scores, images)
        row = found[name] | {task: _in_process(root, task, sides) for task in TASKS}
        found[name] = row
        memory = " | ".join(f"{row[task]:,.0f}" for task in TASKS)
        print(
            f"| {name} | {row['pixel_ap']:.4f} | {row['pixel_auroc']:.4f} | "
            f"{row['image_auroc']:.3f} | {memory} | {row['step']:+.2f} |",
            flush=True,
        )
    one, tiles = found["one view"], found["tiles"]
    return {
        "tiling_pixel_ap": tiles["pixel_ap"] / one["pixel_ap"],
        **{f"tiling_{task}_growth": tiles[task] / one[task] - 1 for task in TASKS},
        "tiling_border_step": tiles["step"],
    }


def border_step(scores: Path, images: int) -> float:
    """Mean step of the maps across tiles' borders, in deviations of the steps near by.

    0: a border is as smooth as its neighbourhood. The value itself of one view, at the borders
    that tiles would have.
    """
    from spg_pipe.backbones.spec import Tiles
    from spg_pipe.detector.scores import Scores

    loaded = Scores.load(scores)
    starts = Tiles(size=VIEW, sides=(SIDE,), overlap=0.25).starts(SIDE, STRIDE)
    borders = sorted({*starts[1:], *(start + VIEW for start in starts[:-1])})
    above = []
    for image in range(0, len(loaded.table), 2):
        one = loaded.maps(np.array([image]), (SIDE, SIDE))[0].astype(np.float64)
        for turned in (one, one.T):
            steps = np.abs(np.diff(turned, axis=1)).mean(axis=0)  # steps[c - 1] leads to column c
            for border in borders:
                columns = border + STRIDE * np.array([*range(-NEAR, 0), *range(1, NEAR + 1)])
                near = steps[columns[(columns > 0) & (columns < SIDE)] - 1]
                above.append((steps[border - 1] - near.mean()) / near.std())
    return float(np.mean(above))


def task(name: str, root: Path, sides: tuple[int, ...]) -> float:
    """Do one of `TASKS` on the large images in this process; its peak in MiB."""
    from spg_pipe.pipeline import features
    from spg_pipe.pipeline.console import Console
    from spg_pipe.pipeline.predict import Ask, predict_images

    run = _run(root, sides)
    with tempfile.TemporaryDirectory(dir=root) as out:
        if name == "extract":
            large = run.params.dataset("large")
            features.extract(run, large, out=Path(out) / "large.zarr")
        else:
            detector, images = run.paths.detector(AUXILIARY, 111), root / "data" / "large"
            ask = Ask(detector, [str(images)], Path(out) / "out", device="cpu", tiles=sides)
            predict_images(ask, Console(0, False))
    return peak_megabytes()


def _run(root: Path, sides: tuple[int, ...]) -> Any:
    from spg_pipe.pipeline.console import Console
    from spg_pipe.pipeline.run import RecipeRun
    from spg_pipe.recipe.params import parse_params

    content = recipe(root) | {"extract": {"tiles": {"large": list(sides)} if sides else {}}}
    return RecipeRun(parse_params(content, "benchmarks.tiling"), Console(0, False))


def _in_process(root: Path, name: str, sides: tuple[int, ...]) -> float:
    command = [sys.executable, "-m", "benchmarks.tiling", "--folder", str(root), "--task", name]
    command += ["--sides", *map(str, sides)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table and the line of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=3, help="of each class and category")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--sides", type=int, nargs="*", default=(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(task(options.task, options.folder, tuple(options.sides)))
        return
    memory = " | ".join(f"{task}, MiB" for task in TASKS)
    print(f"| view | pixel AP | pixel AUROC | image AUROC | {memory} | step at borders |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        found = measure(Path(temporary), options.images)
    print(json.dumps({name: float(f"{value:.4g}") for name, value in found.items()}))


if __name__ == "__main__":
    main()
