"""Do the demo sets ask enough and not too much, whatever the generator's seed?

For each generator seed both demo sets are written, and the recipe's method runs in both
directions, in-process, through the functions that the commands call. The table shows the mean
pixel and image AUROC of the target's categories, and the best pixel AUROC that any local-contrast
map reaches on the same images (its worst inversion too: 1 − the lowest).

    python -m benchmarks.demo_seeds --seeds 0 1 2 3
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.demo_contrast import contrast_auroc
from spg_pipe.backbones import load_backbone
from spg_pipe.datasets.build import build_manifest
from spg_pipe.datasets.paint.catalogue import DEMO_SETS
from spg_pipe.datasets.paint.demo import samples, write_demo
from spg_pipe.detector.evaluate import evaluate_scores
from spg_pipe.detector.make import DetectorPlan, make_detector
from spg_pipe.detector.model import Detector
from spg_pipe.detector.scores import score_store
from spg_pipe.recipe.machine import choose_device
from spg_pipe.recipe.params import Params, load_params
from spg_pipe.sae.train import train_sae
from spg_pipe.store.extract import extract
from spg_pipe.store.reader import FeatureStore

PIXEL, IMAGE, CONTRAST = 0.90, 0.80, 0.75
"""What must hold: at least, at least, at most."""


def store_of(params: Params, name: str, seed: int, folder: Path) -> FeatureStore:
    """Write a demo set and compute its tokens."""
    dataset = params.dataset(name)
    write_demo(name, folder / name, seed=seed)
    manifest = build_manifest(dataset.model_copy(update={"root": folder / name}))
    wanted = params.backbone
    backbone = load_backbone(
        wanted.alias, image_size=wanted.image_size, layers=wanted.layers, norm=wanted.norm
    )
    return extract(manifest, backbone, folder / f"{name}.zarr", device=choose_device("auto"))


def detector_of(params: Params, store: FeatureStore) -> Detector:
    """Fit the SAE and the guides on the auxiliary set."""
    seed, device = params.seeds[0], choose_device("auto")
    sae, quality, _ = train_sae(store, params.sae, params.method, seed=seed, device=device)
    for layer, figures in quality.layers.items():
        print(f"  {store.spec.dataset} {layer}: R² {figures.r2:.3f}", flush=True)
    detector, _ = make_detector(store, DetectorPlan.of(params, sae, seed), device=device)
    return detector


def run_seed(params: Params, seed: int, root: Path, *, details: bool) -> list[tuple[str, bool]]:
    """Both directions for one generator seed: table rows and whether they pass."""
    rows = []
    folder, start = root / f"seed-{seed}", time.perf_counter()
    stores = {name: store_of(params, name, seed, folder) for name in DEMO_SETS}
    print(f"  seed {seed}: tokens after {time.perf_counter() - start:.0f} s", flush=True)
    for direction in params.directions:
        detector = detector_of(params, stores[direction.aux])
        target = stores[direction.target]
        scores = score_store(detector, target, folder / f"scores-{direction.target}")
        table = evaluate_scores(scores, target, params.metrics).table
        mean = table.mean.metrics
        if details:
            for row in table.categories:
                print(
                    f"    {row.category:10s} pixel {row.metrics['pixel_auroc']:.3f} "
                    f"image {row.metrics['image_auroc']:.3f}"
                )
        contrast = contrast_auroc(samples(DEMO_SETS[direction.target], seed)).values()
        low, high = 1 - min(contrast), max(contrast)
        passed = (
            mean["pixel_auroc"] >= PIXEL
            and mean["image_auroc"] >= IMAGE
            and max(low, high) <= CONTRAST
        )
        rows.append(
            (
                f"| {seed} | {direction.aux} → {direction.target} | "
                f"{mean['pixel_auroc']:.3f} | {mean['image_auroc']:.3f} | {high:.3f} | "
                f"{low:.3f} | {'yes' if passed else 'NO'} |",
                passed,
            )
        )
    print(f"  seed {seed}: done after {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def main() -> int:
    """Run the seeds that the command line names; exit code 1 if one misses a requirement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--params", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--details", action="store_true", help="also print each category")
    parser.add_argument("--folder", type=Path, help="keep sets and tokens here, and reuse them")
    options = parser.parse_args()
    params = load_params(options.params)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        rows = [
            r for s in options.seeds for r in run_seed(params, s, root, details=options.details)
        ]
    print("| seed | direction | pixel AUROC | image AUROC | contrast | inverted | holds |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(text for text, _ in rows))
    return 0 if all(passed for _, passed in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
